"""`adapt models create`: models composed of a language model and a vision tower."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from adapt.cli import run
from adapt.errors import CheckpointError, UsageError
from adapt.models.create import CreateOptions, run_create
from adapt.models.handle import open_model
from adapt.models.mono import MonoInternVLForConditionalGeneration
from adapt.models.name_maps import internlm2_pairs, vision_pairs
from adapt.records import Message

SPECIAL = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
WORDS = [f"w{number}" for number in range(40)]
KNOWN = len(WORDS) + 3  # with the three chat tokens below
ROWS = 52  # the embedding has spare rows, as Qwen2's and Phi-3's have
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CHAT_TOKENS = {
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "internlm2": ("<s>", "<|im_start|>", "<|im_end|>"),
    "phi3": ("<s>", "<|user|>", "<|end|>"),
}


def write_tokenizer(folder: Path, first: tuple[str, ...], extra: tuple[str, ...] = ()) -> None:
    vocabulary = {word: number for number, word in enumerate((*first, *WORDS, *extra))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*first, *extra])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=first[-1])
    tokenizer.save_pretrained(folder)


def write_qwen2(folder: Path) -> Qwen2ForCausalLM:
    """A tied model, as Qwen2-0.5B: no head in the file."""
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=True)).eval()
    model.save_pretrained(folder)
    return model


def write_phi3(folder: Path) -> Phi3ForCausalLM:
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}
    config = Phi3Config(
        **{**TEXT, "num_key_value_heads": 4},
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
            "factor": 8.0,
            **factors,
        },
    )
    model = Phi3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def write_internlm2(folder: Path) -> LlamaForCausalLM:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    config = LlamaConfig(**TEXT, rope_parameters=rope)
    model = LlamaForCausalLM(config).eval()
    state = {
        name.replace("model.", "model.language_model.", 1): value
        for name, value in model.state_dict().items()
    }
    original = {
        pair.original.removeprefix("language_model."): pair.cut.join(
            [state[name] for name in pair.native]
        ).contiguous()
        for pair in internlm2_pairs(config)
    }
    # Old files hold the rope's frequencies.
    original["model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(original, folder / "model.safetensors")
    fields = {
        **TEXT,
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return model


WRITERS: dict[str, Callable] = {
    "qwen2": write_qwen2,
    "internlm2": write_internlm2,
    "phi3": write_phi3,
}


def make_language(folder: Path, kind: str, extra: tuple[str, ...] = ()) -> torch.nn.Module:
    torch.manual_seed(1)
    folder.mkdir()
    model = WRITERS[kind](folder)
    write_tokenizer(folder, CHAT_TOKENS[kind], extra)
    return model


def make_vision(folder: Path, *, native: bool) -> InternVLVisionModel:
    torch.manual_seed(2)
    config = InternVLVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        attention_bias=True,
        image_size=56,
        patch_size=14,
        initializer_range=0.2,
    )
    model = InternVLVisionModel(config).eval()
    if native:
        model.save_pretrained(folder)
        return model
    folder.mkdir()
    state = {f"model.vision_tower.{name}": value for name, value in model.state_dict().items()}
    original = {
        pair.original.removeprefix("vision_model."): pair.cut.join(
            [state[name] for name in pair.native]
        ).contiguous()
        for pair in vision_pairs(config)
    }
    save_file(original, folder / "model.safetensors")
    fields = {
        "model_type": "intern_vit_6b",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 56,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return model


def create(tmp_path: Path, kind: str, **options: object) -> Path:
    settings = {"out": tmp_path / "out", "language": tmp_path / "language", **options}
    if kind == "mini-internvl":
        settings.setdefault("vision", tmp_path / "vision")
    return run_create(CreateOptions(kind=kind, **settings)).out


def require_rows(matrix: torch.Tensor, source: torch.Tensor) -> None:
    """Known rows kept, the nine new ones their mean, spare ones gone."""
    assert matrix.shape[0] == KNOWN + len(SPECIAL)
    assert torch.equal(matrix[:KNOWN], source[:KNOWN])
    mean = source[:KNOWN].double().mean(0).float().expand(len(SPECIAL), -1)
    torch.testing.assert_close(matrix[KNOWN:], mean)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_mini_internvl_computes_what_its_parts_compute(tmp_path, kind, native):
    language = make_language(tmp_path / "language", kind)
    tower = make_vision(tmp_path / "vision", native=native)
    out = create(tmp_path, "mini-internvl")
    model = InternVLForConditionalGeneration.from_pretrained(out).eval()
    ids = torch.randint(0, KNOWN, (1, 90))  # past Phi-3's switch point
    torch.testing.assert_close(
        model(input_ids=ids).logits[..., :KNOWN],
        language(input_ids=ids).logits[..., :KNOWN],
        atol=2e-5,
        rtol=1e-5,
    )
    pixels = torch.randn(3, 3, 56, 56)
    torch.testing.assert_close(
        model.model.vision_tower(pixels).last_hidden_state, tower(pixels).last_hidden_state
    )
    require_rows(model.get_input_embeddings().weight, language.get_input_embeddings().weight)
    require_rows(model.lm_head.weight, language.get_output_embeddings().weight)
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_the_projector_is_fresh(tmp_path):
    make_language(tmp_path / "language", "qwen2")
    make_vision(tmp_path / "vision", native=True)
    state = load_file(create(tmp_path, "mini-internvl") / "model.safetensors")
    projector = {
        name.removeprefix("multi_modal_projector."): value
        for name, value in state.items()
        if name.startswith("multi_modal_projector.")
    }
    assert {name: tuple(value.shape) for name, value in projector.items()} == {
        "layer_norm.weight": (64,),
        "layer_norm.bias": (64,),
        "linear_1.weight": (32, 64),
        "linear_1.bias": (32,),
        "linear_2.weight": (32, 32),
        "linear_2.bias": (32,),
    }
    assert torch.equal(projector["layer_norm.weight"], torch.ones(64))
    for name in ("layer_norm.bias", "linear_1.bias", "linear_2.bias"):
        assert not projector[name].any()
    for name in ("linear_1.weight", "linear_2.weight"):
        assert projector[name].std().item() == pytest.approx(0.02, rel=0.1)


def test_mono_internvl_speaks_as_its_language_model_and_sees_with_copies(tmp_path):
    language = make_language(tmp_path / "language", "internlm2")
    out = create(tmp_path, "mono-internvl")
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert isinstance(model, MonoInternVLForConditionalGeneration)
    ids = torch.randint(0, KNOWN, (1, 20))
    torch.testing.assert_close(
        model(input_ids=ids).logits[..., :KNOWN], language(input_ids=ids).logits[..., :KNOWN]
    )
    for layer, source in zip(model.model.language_model.layers, language.model.layers, strict=True):
        for expert in (layer.mlp, layer.visual_mlp):
            for name, value in source.mlp.state_dict().items():
                assert torch.equal(expert.state_dict()[name], value)
    embeddings = model.model.vision_embeddings
    assert embeddings.position_embeddings.shape == (1, 1025, 1024)
    for fresh in (embeddings.position_embeddings, embeddings.patch_embeddings.projection.weight):
        assert fresh.std().item() == pytest.approx(0.02, rel=0.05)
    assert not embeddings.cls_token.any()
    picture = torch.full((1, 256), model.config.image_token_id)
    logits = model(input_ids=picture, pixel_values=torch.randn(1, 3, 448, 448)).logits
    assert torch.isfinite(logits).all()


def test_tokenizer_card_and_handle(tmp_path):
    make_language(tmp_path / "language", "qwen2")
    make_vision(tmp_path / "vision", native=False)
    report = run_create(
        CreateOptions(
            kind="mini-internvl",
            language=tmp_path / "language",
            vision=tmp_path / "vision",
            out=tmp_path / "out",
        )
    )
    assert report.new_tokens == SPECIAL
    assert report.spare_rows == ROWS - KNOWN
    handle = open_model(str(report.out))
    ids = [handle.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL]
    assert ids == list(range(KNOWN, KNOWN + 9))
    assert (handle.image_token_id, handle.vocab_size) == (KNOWN + 2, KNOWN + 9)
    assert (handle.tile_px, handle.tokens_per_tile, handle.template.name) == (56, 4, "Hermes-2")
    assert json.loads((report.out / "adapt.json").read_text()) == {
        "template": "Hermes-2",
        "tile_px": 56,
        "tokens_per_tile": 4,
        "preset": None,
        "format": 1,
    }
    sample = handle.encode([Message("human", "<image>\nw1"), Message("gpt", "w2")], [2])
    assert sample.input_ids.count(KNOWN + 2) == 8
    model = handle.load(torch.float32)
    assert report.parameters == sum(value.numel() for value in model.parameters())
    inputs = torch.tensor([sample.input_ids])
    output = model.generate(
        input_ids=inputs, pixel_values=torch.randn(2, 3, 56, 56), max_new_tokens=3
    )
    assert output.shape[1] > inputs.shape[1]


def test_stock_transformers_reads_the_tokenizer(tmp_path):
    make_language(tmp_path / "language", "qwen2")
    make_vision(tmp_path / "vision", native=False)
    tokenizer = AutoTokenizer.from_pretrained(create(tmp_path, "mini-internvl"))
    # The names transformers' InternVLProcessor asks for.
    assert (tokenizer.start_image_token, tokenizer.end_image_token) == ("<img>", "</img>")
    assert (tokenizer.context_image_token, tokenizer.context_image_token_id) == (
        "<IMG_CONTEXT>",
        KNOWN + 2,
    )
    assert tokenizer("w1 <img><IMG_CONTEXT></img>").input_ids == [4, KNOWN, KNOWN + 2, KNOWN + 1]


def test_tokens_that_are_there_keep_their_ids_and_rows(tmp_path):
    language = make_language(tmp_path / "language", "qwen2", extra=("<img>", "<IMG_CONTEXT>"))
    make_vision(tmp_path / "vision", native=True)
    out = create(tmp_path, "mini-internvl")
    handle = open_model(str(out))
    assert (handle.image_token_id, handle.vocab_size) == (KNOWN + 1, KNOWN + 9)
    rows = load_file(out / "model.safetensors")["language_model.model.embed_tokens.weight"]
    source = language.get_input_embeddings().weight
    assert torch.equal(rows[: KNOWN + 2], source[: KNOWN + 2])


def test_bfloat16_parts_make_a_bfloat16_model(tmp_path):
    make_language(tmp_path / "language", "internlm2")
    weights = tmp_path / "language" / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(weights).items()}, weights)
    make_vision(tmp_path / "vision", native=False)
    out = create(tmp_path, "mini-internvl")
    state = load_file(out / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_another_only_other_fresh_weights(tmp_path):
    make_language(tmp_path / "language", "internlm2")
    one, two, other = (
        create(tmp_path, "mono-internvl", out=tmp_path / name, seed=seed, verify=False)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert files(one) == files(two)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "model.vision_embeddings.position_embeddings",
        "model.vision_embeddings.patch_embeddings.projection.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_2.weight",
    }


# What does not fit


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def drop_tensor(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors")


def add_tensor(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, name: torch.zeros(2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda llm, _: edit_config(llm, model_type="gpt2"),
            r"language/config.json: model_type is gpt2, expected internlm2 or phi3 or qwen2",
        ),
        (
            lambda llm, _: edit_config(llm, use_sliding_window=True),
            r"use_sliding_window is on",
        ),
        (
            lambda _, vit: edit_config(vit, model_type="clip"),
            r"vision/config.json: model_type is clip, expected intern_vit_6b .* internvl_vision",
        ),
        (
            lambda llm, _: drop_tensor(llm, "model.norm.weight"),
            r"language: .*1 missing: language_model.model.norm.weight",
        ),
        (
            lambda llm, _: drop_tensor(llm, "output.weight"),
            r"language: .*1 missing: language_model.output.weight",
        ),
        (
            lambda llm, _: add_tensor(llm, "value_head.weight"),
            r"language: .*1 left over: language_model.value_head.weight",
        ),
        (
            lambda _, vit: drop_tensor(vit, "encoder.layers.1.ls1"),
            r"vision: .*1 missing: vision_model.encoder.layers.1.ls1",
        ),
        (
            lambda _, vit: edit_config(vit, intermediate_size=25),
            r"vision: .*of another shape: vision_model.encoder.layers.0.mlp.fc1",
        ),
        (
            lambda llm, _: write_tokenizer(llm, CHAT_TOKENS["internlm2"], tuple("abcdefghij")),
            r"language: model.tok_embeddings.weight has 52 rows, its tokenizer ids up to 52",
        ),
        (
            lambda llm, _: write_tokenizer(llm, CHAT_TOKENS["phi3"]),
            r"language: the tokenizer has no token <\|im_end\|>",
        ),
        (lambda llm, _: (llm / "tokenizer.json").unlink(), r"language: no tokenizer"),
        (
            lambda llm, _: (llm / "model.safetensors").rename(llm / "pytorch_model.bin"),
            r"pytorch_model.bin: is a pickle",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line_and_nothing_is_written(
    tmp_path, spoil, message
):
    make_language(tmp_path / "language", "internlm2")
    make_vision(tmp_path / "vision", native=False)
    spoil(tmp_path / "language", tmp_path / "vision")
    with pytest.raises(CheckpointError, match=message) as caught:
        create(tmp_path, "mini-internvl")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language", "vision"]


def test_a_native_tower_with_other_tensors_is_refused(tmp_path):
    make_language(tmp_path / "language", "qwen2")
    make_vision(tmp_path / "vision", native=True)
    add_tensor(tmp_path / "vision", "layernorm.weight")
    with pytest.raises(CheckpointError, match=r"1 left over: model.vision_tower.layernorm.weight"):
        create(tmp_path, "mini-internvl")


def test_mono_internvl_is_made_of_internlm2_only(tmp_path):
    make_language(tmp_path / "language", "qwen2")
    with pytest.raises(CheckpointError, match=r"model_type is qwen2, expected internlm2: the"):
        create(tmp_path, "mono-internvl")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mini-intern", {}, r"no kind of model is called mini-intern .did you mean mini-internvl"),
        ("mini-internvl", {"vision": None}, r"mini-internvl needs a vision tower.*--vision DIR"),
        ("mono-internvl", {"vision": Path("v")}, r"mono-internvl has no vision tower"),
    ],
)
def test_wrong_options_are_refused(tmp_path, kind, options, message):
    with pytest.raises(UsageError, match=message):
        create(tmp_path, kind, **options)


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    make_language(tmp_path / "language", "internlm2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out: is there already"):
        create(tmp_path, "mono-internvl")
    assert files(tmp_path / "out") == {"note.txt": b"mine"}


def test_command_line(tmp_path, capsys):
    make_language(tmp_path / "language", "phi3")
    make_vision(tmp_path / "vision", native=True)
    parts = ["--llm", str(tmp_path / "language"), "--vision", str(tmp_path / "vision")]
    out = tmp_path / "out"
    assert run(["models", "create", "mini-internvl", *parts, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 0.0")
    assert "9 new tokens, 9 spare embedding rows dropped; largest logit difference" in printed
    assert open_model(str(out)).template.name == "phi3-chat"
    assert run(["models", "create", "mini-internvl", *parts, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
