"""Export to the original layout, bit for bit, and to a plain native folder."""

import json
import resource
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from adapt.cli import run
from adapt.errors import CheckpointError, EnvironmentFault, UsageError
from adapt.models.checkpoint_config import native_config, read_config
from adapt.models.exporting import export_checkpoint
from adapt.models.importing import import_checkpoint
from adapt.models.known_layouts import layout_of_native
from adapt.models.presets import load_preset
from adapt.models.shards import open_checkpoint
from adapt.models.verify import verify_checkpoints

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5


@pytest.fixture
def make_native(make_original, tmp_path):
    """Return the function that writes a small original checkpoint and imports it."""

    def make(kind="internlm2", **options):
        source = make_original(tmp_path / "source", kind, **options)
        import_checkpoint(source, tmp_path / "native", verify=False, image_token_id=IMAGE_TOKEN)
        return source, tmp_path / "native"

    return make


def load(folder):
    fields = read_config(folder)
    return type(layout_of_native(fields).build(native_config(fields))).from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_goldens_come_back_byte_for_byte(shared, tmp_path, kind):
    golden = shared / "goldens" / "checkpoints" / kind
    import_checkpoint(golden, tmp_path / "native", verify=False, image_token_id=500)
    report = export_checkpoint(tmp_path / "native", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (golden / name).read_bytes(), name
    counts = {"qwen2": (73, 65), "internlm2": (67, 55), "phi3": (61, 53), "mono": (37, 33)}
    assert (report.tensors_in, report.tensors_out) == counts[kind]
    assert report.difference.largest < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_in_every_dtype(make_native, tmp_path, kind, dtype):
    source, native = make_native(kind, dtype=dtype)
    export_checkpoint(native, tmp_path / "back", verify=False)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name


@pytest.mark.parametrize(
    ("kind", "llm", "vision"),
    [
        ("internlm2", {"bias": True}, {}),
        ("qwen2", {"tie_word_embeddings": True}, {}),
        ("qwen2", {}, {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}),
    ],
)
def test_round_trip_of_variants(make_native, tmp_path, kind, llm, vision):
    source, native = make_native(kind, llm=llm, vision=vision)
    report = export_checkpoint(native, tmp_path / "back")
    assert report.difference.scale > 0.5
    written = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert written == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_changed_is_exported(make_native, tmp_path, kind):
    """A model changed in memory and saved by transformers, as a trainer saves it."""
    source, native = make_native(kind)
    model = load(native)
    key = f"model.language_model.layers.1.self_attn.{'qkv' if kind == 'phi3' else 'k'}_proj.weight"
    changed = model.get_parameter(key)
    with torch.no_grad():
        changed[2] += 1.0
    trained = tmp_path / "trained"
    model.save_pretrained(trained)
    shutil.copytree(native / "original", trained / "original")
    export_checkpoint(trained, tmp_path / "back")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    names = {
        "qwen2": ("self_attn.k_proj.weight", 2),
        # Rows of a group: two heads of queries (4 dims each), then the key's.
        "internlm2": ("attention.wqkv.weight", 10),
        "mono": ("attention.wqkv.weight", 10),
        "phi3": ("self_attn.qkv_proj.weight", 2),
    }
    leaf, row = names[kind]
    name = f"language_model.model.layers.1.{leaf}"
    before[name][row] += 1.0
    assert before.keys() == after.keys()
    assert [key for key in before if not before[key].equal(after[key])] == []


def test_names_in_memory_are_taken_too(make_native, tmp_path):
    """A state dict written as it is, without transformers' renaming."""
    source, native = make_native()
    state = {key: value.clone() for key, value in load(native).state_dict().items()}
    save_file(state, native / "model.safetensors", metadata={"format": "pt"})
    export_checkpoint(native, tmp_path / "back")
    written = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert written == (source / "model.safetensors").read_bytes()


def test_another_dtype_is_told(make_native, tmp_path):
    source, native = make_native()
    fields = read_config(source) | {"torch_dtype": "bfloat16"}
    (native / "original" / "config.json").write_text(json.dumps(fields))
    export_checkpoint(native, tmp_path / "back")
    assert read_config(tmp_path / "back") == fields | {"torch_dtype": "float32"}


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_original_files_they_are_written_anew(make_native, tmp_path, kind):
    source, native = make_native(kind)
    shutil.rmtree(native / "original")
    export_checkpoint(native, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    before, after = read_config(source), read_config(tmp_path / "back")
    # A window wider than every position is not kept: it never acts.
    before["llm_config"].pop("sliding_window", None)
    for section in ("llm_config", "vision_config"):
        assert before[section].items() <= after.pop(section).items()
        del before[section]
    assert before.items() <= after.items()
    assert after["architectures"] == ["InternVLChatModel"]
    assert (after["force_image_size"], after["torch_dtype"]) == (56, "float32")
    pictures = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert (pictures["crop_size"], pictures["feature_extractor_type"]) == (
        56,
        "CLIPFeatureExtractor",
    )
    import_checkpoint(tmp_path / "back", tmp_path / "again", image_token_id=IMAGE_TOKEN)
    weights = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert weights == (native / "model.safetensors").read_bytes()


@pytest.fixture
def spoken(make_original, tmp_path):
    """An original checkpoint with the shipped tiny tokenizer, and code."""
    source = make_original(
        tmp_path / "source", "qwen2", llm={"vocab_size": load_preset("tiny").text["vocab_size"]}
    )
    for path in load_preset("tiny").tokenizer_folder.glob("tokenizer*.json"):
        shutil.copyfile(path, source / path.name)
    fields = read_config(source) | {"template": "internvl2_5"}
    (source / "config.json").write_text(json.dumps(fields))
    (source / "modeling_internvl_chat.py").write_text("raise SystemExit")
    (source / "added_tokens.json").write_text('{"<IMG_CONTEXT>": 5}')
    return source


def test_small_files_come_back_and_code_does_not(spoken, tmp_path):
    import_checkpoint(spoken, tmp_path / "native")
    assert list((tmp_path / "native").rglob("*.py")) == []
    export_checkpoint(tmp_path / "native", tmp_path / "back")
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == sorted(path.name for path in spoken.iterdir() if path.suffix != ".py")
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (spoken / name).read_bytes(), name


def test_tokenizer_is_written_for_transformers_4_and_5(spoken, tmp_path):
    import_checkpoint(spoken, tmp_path / "native")
    shutil.rmtree(tmp_path / "native" / "original")
    export_checkpoint(tmp_path / "native", tmp_path / "back")
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["eos_token"], settings["model_max_length"]) == ("<|im_end|>", 64)
    assert settings["additional_special_tokens"][:3] == ["<img>", "</img>", "<IMG_CONTEXT>"]
    # The folder is one that import reads: the image token comes from this tokenizer.
    report = import_checkpoint(tmp_path / "back", tmp_path / "again")
    assert report.difference.largest < 1e-4
    assert read_config(tmp_path / "again")["image_token_id"] == 5


def test_stock_checkpoint_without_adapt_json(make_native, tmp_path):
    """As the hub's `-hf` checkpoints are: they were trained with internvl2_5."""
    _, native = make_native("qwen2")
    stock = tmp_path / "stock"
    load(native).save_pretrained(stock)
    export_checkpoint(stock, tmp_path / "back")
    assert read_config(tmp_path / "back")["template"] == "internvl2_5"


def test_native_layout_is_what_save_pretrained_writes(make_native, tmp_path):
    _, native = make_native("qwen2")
    report = export_checkpoint(native, tmp_path / "plain", layout="native")
    load(native).save_pretrained(tmp_path / "saved")
    assert report.difference.largest == 0.0
    assert open_checkpoint(tmp_path / "plain").specs == open_checkpoint(tmp_path / "saved").specs
    state = InternVLForConditionalGeneration.from_pretrained(tmp_path / "plain").state_dict()
    assert all(tensor.equal(state[key]) for key, tensor in load(native).state_dict().items())
    assert (tmp_path / "plain" / "original" / "config.json").exists()
    assert (tmp_path / "plain" / "adapt.json").read_bytes() == (native / "adapt.json").read_bytes()


def test_an_original_checkpoint_is_exported_to_native_by_importing_it(spoken, tmp_path):
    report = export_checkpoint(spoken, tmp_path / "native", layout="native")
    assert (report.tensors_in, report.tensors_out) == (65, 73)
    assert verify_checkpoints(spoken, tmp_path / "native").largest < 1e-4


def test_run_folder_is_taken_by_its_model(make_native, tmp_path, capsys):
    source, native = make_native()
    (tmp_path / "run").mkdir()
    native.rename(tmp_path / "run" / "model")
    arguments = ["models", "export", str(tmp_path / "run"), "--out", str(tmp_path / "back")]
    assert run([*arguments, "--layout", "original", "--no-verify"]) == 0
    assert "67 tensors in, 55 out" in capsys.readouterr().out
    written = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert written == (source / "model.safetensors").read_bytes()


def edit(path, **changes):
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        *sections, leaf = name.split("__")
        part = fields
        for section in sections:
            part = part[section]
        part[leaf] = value
    path.write_text(json.dumps(fields))


def drop_a_tensor(native):
    tensors = load_file(native / "model.safetensors")
    del tensors["vision_tower.embeddings.cls_token"]
    save_file(tensors, native / "model.safetensors")


def mix_dtypes(native):
    tensors = load_file(native / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, native / "model.safetensors")


def make_adapter(native):
    (native / "config.json").rename(native / "adapter_config.json")


def add_the_other_name(native):
    tensors = load_file(native / "model.safetensors")
    norm = "language_model.model.norm.weight"
    tensors["model.language_model.norm.weight"] = tensors[norm] + 1
    save_file(tensors, native / "model.safetensors")


BAD = {
    "rope changed since": (
        lambda native: edit(native / "config.json", text_config__rope_parameters__factor=3.0),
        r"original/config.json: gives text_config.rope_parameters .*2.0.*, but the model now has",
    ),
    "another model kept": (
        lambda native: edit(
            native / "original" / "config.json", llm_config__architectures=["Qwen2ForCausalLM"]
        ),
        r"original/config.json: is of a qwen2 model, but the model now is internlm2; remove the fo",
    ),
    "another layer kept": (
        lambda native: edit(native / "original" / "config.json", select_layer=-2),
        r"original/config.json: gives vision_feature_layer -2, but the model now has -1; remove",
    ),
    "a tensor under both its names": (
        add_the_other_name,
        r"are two names of one tensor; files of two checkpoints may be mixed",
    ),
    "tensor missing": (drop_a_tensor, r"1 missing: model.vision_tower.embeddings.cls_token"),
    "two dtypes in one tensor": (mix_dtypes, r"have dtypes F16 and F32, but become one tensor"),
    "another model": (
        lambda native: edit(native / "config.json", model_type="llava"),
        r"/config.json: model_type is llava with a llama language model",
    ),
    "an adapter": (make_adapter, r"holds a LoRA adapter, no whole model; adapt models merge"),
    "a head tied by mistake": (
        lambda native: edit(native / "config.json", tie_word_embeddings=True),
        r"ties the head to the embedding, but their weights differ; set tie_word_embeddings to fa",
    ),
    "damaged adapt.json": (
        lambda native: (native / "adapt.json").write_text("{}"),
        r"adapt.json: .*missing required field",
    ),
    "empty folder": (
        lambda native: [shutil.rmtree(native), native.mkdir()],
        r"native: has no config.json, so it is not a checkpoint",
    ),
    "no folder": (shutil.rmtree, r"native: no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_written(make_native, tmp_path, case):
    _, native = make_native()
    damage, message = BAD[case]
    damage(native)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_checkpoint(native, tmp_path / "back")
    assert str(native) in str(caught.value)
    assert "\n" not in str(caught.value)
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"native"} == {"source"}


def test_nothing_to_export(make_original, tmp_path):
    source = make_original(tmp_path / "source")
    with pytest.raises(UsageError, match=r"is in the original layout already"):
        export_checkpoint(source, tmp_path / "back")
    with pytest.raises(UsageError, match=r"--layout is nativ, expected original or native"):
        export_checkpoint(source, tmp_path / "back", layout="nativ")


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_a_tied_head(make_native, tmp_path, kind):
    source, native = make_native(kind, llm={"tie_word_embeddings": True})
    report = export_checkpoint(native, tmp_path / "back")
    assert report.difference.is_within
    written = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert written == (source / "model.safetensors").read_bytes()


@pytest.fixture
def small_files():
    """Return the function that lets no file grow beyond some bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["import", "native", "original"])
def test_full_disk_in_the_tokenizer(make_original, tmp_path, small_files, what):
    """The tokenizers library has errors of its own for it."""
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    vocabulary = load_preset("tiny").text["vocab_size"]
    small = make_original(
        tmp_path / "small", "qwen2", llm={"vocab_size": vocabulary, **sizes, **heads}
    )
    for path in load_preset("tiny").tokenizer_folder.glob("tokenizer*.json"):
        shutil.copyfile(path, small / path.name)
    fields = read_config(small) | {"template": "internvl2_5"}
    (small / "config.json").write_text(json.dumps(fields))
    import_checkpoint(small, tmp_path / "native", verify=False)
    shutil.rmtree(tmp_path / "native" / "original")
    before = sorted(tmp_path.iterdir())
    weights, tokenizer = (
        (tmp_path / "native" / name).stat().st_size
        for name in ("model.safetensors", "tokenizer.json")
    )
    assert weights < tokenizer
    small_files(tokenizer - 1)
    write = {
        "import": partial(import_checkpoint, small),
        "native": partial(export_checkpoint, tmp_path / "native", layout="native"),
        "original": partial(export_checkpoint, tmp_path / "native", layout="original"),
    }[what]
    with pytest.raises(EnvironmentFault, match=r"back\..*\.tmp.*: the disk is full"):
        write(tmp_path / "back", verify=False)
    assert sorted(tmp_path.iterdir()) == before
