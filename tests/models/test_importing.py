"""Import of original checkpoints: shards, variants, tokenizers, and bad input."""

import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    InternVLForConditionalGeneration,
    InternVLProcessor,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from adapt.cli import run
from adapt.errors import CheckFailed, CheckpointError
from adapt.models import layouts
from adapt.models.card import Card, read_card
from adapt.models.chat import load_template, render
from adapt.models.checkpoint_config import read_config
from adapt.models.handle import open_model
from adapt.models.importing import import_checkpoint
from adapt.models.presets import load_preset
from adapt.models.shards import INDEX, Checkpoint, open_checkpoint
from adapt.records import Message

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5


@pytest.mark.parametrize("kind", KINDS)
def test_shards_give_the_same_as_one_file(make_original, tmp_path, kind):
    single = make_original(tmp_path / "single", kind)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copyfile(single / "config.json", sharded / "config.json")
    tensors = sorted(load_file(single / "model.safetensors").items())
    weight_map = {}
    for number in range(3):
        name = f"model-0000{number + 1}-of-00003.safetensors"
        save_file(dict(tensors[number::3]), sharded / name)
        weight_map |= dict.fromkeys(dict(tensors[number::3]), name)
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for source, out in ((single, "a"), (sharded, "b")):
        import_checkpoint(source, tmp_path / out, image_token_id=IMAGE_TOKEN)
    for name in ("model.safetensors", "config.json", "generation_config.json", "adapt.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


VARIANTS = {
    "internlm2 with biases": ("internlm2", {"bias": True}, {}),
    "internlm2 with a linear rope": (
        "internlm2",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {},
    ),
    "internlm2 without grouped heads": ("internlm2", {"num_key_value_heads": 4}, {}),
    "qwen2 with a dynamic rope": ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 2}}, {}),
    "qwen2 with a tied head": ("qwen2", {"tie_word_embeddings": True}, {}),
    "phi3 without a long rope": ("phi3", {"rope_scaling": None}, {}),
    "phi3 with grouped heads": ("phi3", {"num_key_value_heads": 2}, {}),
    "vision tower of the 6B": (
        "qwen2",
        {},
        {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variants_compute_the_same_in_both_layouts(make_original, tmp_path, variant, dtype):
    kind, llm, vision = VARIANTS[variant]
    source = make_original(tmp_path / "source", kind, llm=llm, vision=vision, dtype=dtype)
    report = import_checkpoint(source, tmp_path / "out", image_token_id=IMAGE_TOKEN)
    # Random weights of this size give logits of order 1: agreement says something.
    assert report.difference.scale > 0.5
    assert report.difference.largest < 1e-4
    native = open_checkpoint(tmp_path / "out")
    assert native.num_bytes == open_checkpoint(source).num_bytes
    assert {spec.dtype for spec in native.specs.values()} == {native.main_dtype}
    model, info = InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert model.dtype == dtype


def test_tensors_stream_across_one_at_a_time(make_original, tmp_path, monkeypatch):
    source = make_original(tmp_path / "source")
    seen, most = [], 0
    read = Checkpoint.read

    def counted(self, name):
        nonlocal most
        tensor = read(self, name)
        seen.append((name, weakref.ref(tensor)))
        most = max(most, sum(reference() is not None for _, reference in seen))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counted)
    import_checkpoint(source, tmp_path / "out", verify=False, image_token_id=IMAGE_TOKEN)
    # Each once; the one before may live until its successor is there.
    assert sorted(name for name, _ in seen) == sorted(load_file(source / "model.safetensors"))
    assert most <= 2


def with_tokenizer(folder, tokenizer, **fields):
    """Give a checkpoint a tokenizer and the template that belongs to it."""
    for path in tokenizer.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.fixture
def spoken(make_original, tmp_path):
    """A checkpoint with the shipped tiny tokenizer."""
    tokenizer = load_preset("tiny").tokenizer_folder
    source = make_original(
        tmp_path / "source", "qwen2", llm={"vocab_size": load_preset("tiny").text["vocab_size"]}
    )
    return with_tokenizer(source, tokenizer, template="internvl2_5")


def test_everything_stock_transformers_reads_is_there(spoken, tmp_path):
    out = tmp_path / "out"
    import_checkpoint(spoken, out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "adapt.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "original/config.json",
        "original/tokenizer.json",
        "original/tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    ]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == 5
    assert tokenizer.get_vocab() == open_model("tiny").tokenizer.get_vocab()
    assert read_config(out)["image_token_id"] == 5
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]
    assert read_card(out) == Card(template="internvl2_5", tile_px=56, tokens_per_tile=4)


def test_open_model_reads_an_imported_folder(spoken, tmp_path):
    import_checkpoint(spoken, tmp_path / "out")
    handle = open_model(str(tmp_path / "out"))
    assert (handle.template.name, handle.image_token_id, handle.tokens_per_tile) == (
        "internvl2_5",
        5,
        4,
    )
    turns = [Message("human", "<image>\nwhat?"), Message("gpt", "a box")]
    assert handle.encode(turns, [2]).input_ids.count(5) == 8


def test_processor_writes_the_same_prompt_as_adapt(spoken, tmp_path, monkeypatch):
    """transformers' InternVLProcessor needs torchvision for videos alone: that part is left out."""
    out = tmp_path / "out"
    import_checkpoint(spoken, out)
    monkeypatch.setattr(AutoVideoProcessor, "from_pretrained", lambda *_, **__: None)
    check = InternVLProcessor.check_argument_for_proper_class
    monkeypatch.setattr(
        InternVLProcessor,
        "check_argument_for_proper_class",
        lambda self, name, value: None if name == "video_processor" else check(self, name, value),
    )
    processor = AutoProcessor.from_pretrained(out)
    assert isinstance(processor, InternVLProcessor)
    picture = {"type": "image"}, {"type": "text", "text": "what is it?"}
    messages = [
        {"role": "user", "content": list(picture)},
        {"role": "assistant", "content": "a box"},
        {"role": "user", "content": "and now?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    # 112x56: two tiles and a thumbnail.
    inputs = processor(text=text, images=[Image.new("RGB", (112, 56))], return_tensors="pt")
    handle = open_model(str(out))
    turns = [
        Message("human", "<image>\nwhat is it?"),
        Message("gpt", "a box"),
        Message("human", "and now?"),
        Message("gpt", ""),
    ]
    assert inputs["input_ids"][0].tolist() == handle.encode_prompt(turns, [3])
    assert inputs["pixel_values"].shape == (3, 3, 56, 56)
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(inputs["pixel_values"][0, :, 0, 0], black)
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 56, "width": 56}


@pytest.mark.parametrize("kind", ["qwen2", "internlm2", "phi3"])
def test_real_tokenizers(shared, make_original, tmp_path, kind):
    rows = {"qwen2": 151655, "internlm2": 92553, "phi3": 32020}[kind]
    image = {"qwen2": 151648, "internlm2": 92546, "phi3": 32013}[kind]
    stop = {"qwen2": [151645, 151643], "internlm2": [92542, 2], "phi3": [32007, 32000]}[kind]
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    if kind == "phi3":
        sizes["rope_scaling"] = {"type": "su", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}
    source = make_original(
        tmp_path / "source", kind, llm={"vocab_size": rows, **sizes, "num_key_value_heads": 1}
    )
    with_tokenizer(source, shared / "tokenizers" / kind)
    import_checkpoint(source, tmp_path / "out", verify=False)
    assert read_config(tmp_path / "out")["image_token_id"] == image
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == stop
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == rows
    template = load_template(read_config(source)["template"])
    turns = [Message("human", " what is it? "), Message("gpt", "一只猫"), Message("human", "sure?")]
    messages = [
        {"role": "user" if turn.speaker == "human" else "assistant", "content": turn.value}
        for turn in turns
    ]
    # Servers render the chat and let the tokenizer add nothing: <s> must be in the text.
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == ("" if kind == "qwen2" else "<s>") + render(template, turns).text
    ids = open_model(str(tmp_path / "out")).encode(turns[:2], []).input_ids
    assert tokenizer.apply_chat_template(messages[:2])["input_ids"] == ids


def test_a_tokenizer_of_a_much_smaller_model(make_original, tmp_path):
    tokenizer = load_preset("tiny").tokenizer_folder
    for rows in (1536 + 1024, 1536 + 1025):
        source = make_original(tmp_path / f"rows{rows}", "qwen2", llm={"vocab_size": rows})
        with_tokenizer(source, tokenizer, template="internvl2_5")
    import_checkpoint(tmp_path / "rows2560", tmp_path / "out", verify=False)
    with pytest.raises(CheckpointError, match=r"has 1536 ids, the embedding 2561 rows; they are"):
        import_checkpoint(tmp_path / "rows2561", tmp_path / "out2", verify=False)
    assert not (tmp_path / "out2").exists()


def test_the_preset_asked_for_is_kept(spoken, tmp_path, monkeypatch):
    """A hub's cache names its folders by commit, so the name says nothing."""
    monkeypatch.setattr("adapt.models.hub._download", lambda _id: spoken)
    out = tmp_path / "out"
    assert run(["models", "import", "mini-internvl2-1b-da-rs", "--out", str(out)]) == 0
    assert read_card(out).preset == "mini-internvl2-1b-da-rs"


def test_a_sliding_window_is_refused(make_original, tmp_path):
    source = make_original(tmp_path / "source", "qwen2")
    fields = json.loads((source / "config.json").read_text())
    fields["llm_config"]["use_sliding_window"] = True
    (source / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"llm_config.use_sliding_window is on; packs of"):
        import_checkpoint(source, tmp_path / "out", image_token_id=IMAGE_TOKEN)


def test_a_bad_rope_is_one_line(make_original, tmp_path, capfd):
    source = make_original(tmp_path / "source", "phi3")
    fields = json.loads((source / "config.json").read_text())
    fields["llm_config"]["rope_scaling"]["short_factor"] = [1.0] * 7
    (source / "config.json").write_text(json.dumps(fields))
    arguments = ["models", "import", str(source), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--image-token-id", str(IMAGE_TOKEN)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "short_factor" in line


def test_preset_is_recognised_by_sizes_and_name(make_original, tmp_path, monkeypatch):
    """The rule alone, on a preset's config: weights of that size would be gigabytes."""
    from adapt.models import importing

    preset = load_preset("mini-internvl2-1b")
    source = SimpleNamespace(
        folder=tmp_path / "somewhere",
        config=preset.config(7),
        template=load_template(preset.template),
    )
    assert importing._preset_name(source) == "mini-internvl2-1b"
    named = load_preset("mini-internvl2-1b-da-drivelm")
    source.folder = tmp_path / named.hub_id.rpartition("/")[2]
    assert importing._preset_name(source) == "mini-internvl2-1b-da-drivelm"
    source.config.text_config.hidden_size += 1
    assert importing._preset_name(source) is None


def edit_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def edit_config(**fields):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return damage


def become_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def become_a_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")


def take_a_larger_tokenizer(folder):
    with_tokenizer(folder, load_preset("tiny").tokenizer_folder, template="internvl2_5")


def take_a_text_tokenizer(folder):
    take_a_larger_tokenizer(folder)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace("<IMG_CONTEXT>", "<nothing>"))


WO = "language_model.model.layers.1.attention.wo.weight"
BAD = {
    "missing shard": (
        become_a_shard,
        r"1 of 2 shards are missing: model-00001-of-00002.safetensors; fetch",
    ),
    "missing tensor": (
        edit_tensors(lambda tensors: tensors.pop(WO)),
        rf"do not fit its config.json: 1 missing: {WO}; ",
    ),
    "extra tensor": (
        edit_tensors(lambda tensors: tensors.update(spare=torch.ones(1))),
        r"do not fit its config.json: 1 left over: spare; ",
    ),
    "wrong shape": (
        edit_tensors(lambda tensors: tensors.update({WO: torch.ones(16, 8)})),
        rf"1 of another shape: {WO} is \[16, 8\], expected \[16, 16\]; ",
    ),
    "whole numbers": (
        edit_tensors(lambda tensors: tensors.update({WO: torch.ones(16, 16, dtype=torch.int8)})),
        rf"1 of no floating-point dtype: {WO} is I8; ",
    ),
    "folder in place of the weights": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").mkdir(),
        ],
        r"has no \*.safetensors files; expected model.safetensors",
    ),
    "config of another model": (
        edit_config(model_type="llava"),
        r"/config.json: model_type is llava, expected internvl_chat",
    ),
    "config of another size": (
        edit_config(downsample_ratio=0.25),
        r"3 of another shape: mlp1.0.bias is \[32\], expected \[128\], .* fetch the checkpoint",
    ),
    "config that contradicts itself": (
        edit_config(vision_config={"num_hidden_layers": 1, "hidden_size": 8}),
        r"/config.json: vision_config.hidden_size is 8, not a multiple of num_attention_heads \(25",
    ),
    "config that nothing can be built from": (
        edit_config(vision_config={"hidden_act": "gulp"}),
        r"config.json: transformers cannot build it: .*gulp",
    ),
    "native checkpoint": (edit_config(model_type="internvl"), r"is native already"),
    "unknown template": (edit_config(template="Hermes2"), r"did you mean Hermes-2\?"),
    "damaged config": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"config.json:1:\d+: not valid JSON",
    ),
    "config that is a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        r"config.json: a JSON list, expected an object",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config.json: no such file"),
    "no folder": (shutil.rmtree, r"no such folder, expected a checkpoint"),
    "pickle": (become_a_pickle, r"pytorch_model.bin: is a pickle, .* can run any code"),
    "tokenizer too large": (
        take_a_larger_tokenizer,
        r"the tokenizer has ids up to \d+ .*, the embedding 96 rows",
    ),
    "tokenizer without pictures": (take_a_text_tokenizer, r"has no token <IMG_CONTEXT>"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_written(make_original, tmp_path, case):
    damage, message = BAD[case]
    source = make_original(tmp_path / "source")
    damage(source)
    token = None if case.startswith("tokenizer") else IMAGE_TOKEN
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(source, tmp_path / "out", image_token_id=token)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path != source] == []


def test_weights_alone_need_the_image_token(make_original, tmp_path, capsys):
    source, out = make_original(tmp_path / "source"), tmp_path / "out"
    assert run(["models", "import", str(source), "--out", str(out)]) == 2
    assert "has no tokenizer, so the id of <IMG_CONTEXT> is unknown" in capsys.readouterr().err
    assert run(["models", "import", str(source), "--out", str(out), "--image-token-id", "96"]) == 2
    assert "image token id 96 is outside the vocabulary of 96" in capsys.readouterr().err
    assert not out.exists()
    assert run(["models", "import", str(source), "--out", str(out), "--image-token-id", "5"]) == 0
    assert "internlm2, 55 tensors in, 67 out" in capsys.readouterr().out
    assert run(["models", "import", str(source), "--out", str(out), "--image-token-id", "5"]) == 2
    assert "out: is there already" in capsys.readouterr().err


def test_image_token_that_contradicts_the_tokenizer(spoken, tmp_path):
    with pytest.raises(CheckpointError, match=r"is 7, but <IMG_CONTEXT> is 5 in the tokenizer"):
        import_checkpoint(spoken, tmp_path / "out", image_token_id=7)


@pytest.mark.parametrize("kind", ["internlm2", "mono"])
def test_a_wrong_cut_is_caught_by_the_logits(make_original, tmp_path, monkeypatch, kind):
    """Same names, same shapes, keys and values exchanged: only computing finds it."""
    source = make_original(tmp_path / "source", kind)
    split = layouts.GroupedRows.split

    def exchanged(self, tensor):
        queries, keys, values = split(self, tensor)
        return [queries, values, keys]

    monkeypatch.setattr(layouts.GroupedRows, "split", exchanged)
    with pytest.raises(CheckFailed, match=r"source and .*/out do not compute the same"):
        import_checkpoint(source, tmp_path / "out", image_token_id=IMAGE_TOKEN)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    import_checkpoint(source, tmp_path / "out", verify=False, image_token_id=IMAGE_TOKEN)
    assert Path(tmp_path / "out" / "model.safetensors").exists()
