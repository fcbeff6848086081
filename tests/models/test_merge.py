"""LoRA into its base, and adapters that are not of that base."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapt.cli import run
from adapt.errors import CheckFailed, CheckpointError
from adapt.models.checkpoint_config import native_config, read_config
from adapt.models.importing import import_checkpoint
from adapt.models.known_layouts import layout_of_native
from adapt.models.lora import Adapter, open_adapter
from adapt.models.merge import fingerprint, merge_adapter
from adapt.models.shards import open_checkpoint

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5
TARGETS = r".*\.(q_proj|o_proj|qkv_proj|up_proj|visual_mlp\.down_proj|fc1)"


def load(folder, dtype=torch.float32):
    fields = read_config(folder)
    kind = type(layout_of_native(fields).build(native_config(fields)))
    return kind.from_pretrained(folder, dtype=dtype)


@pytest.fixture
def make_base(make_original, tmp_path):
    def make(kind="internlm2", name="base", **options):
        source = make_original(tmp_path / f"source-{name}", kind, **options)
        base = tmp_path / name
        import_checkpoint(source, base, verify=False, image_token_id=IMAGE_TOKEN)
        shutil.rmtree(source)
        return base

    return make


def add_lora(base, out, **options):
    """Write an adapter with weights that count; return the model with it on."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 4, "target_modules": TARGETS, **options}
    with warnings.catch_warnings():
        # peft asks transformers by an older name.
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(load(base), peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(out, save_embedding_layers=False)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "alpha_pattern": {"layers.1.self_attn.o_proj": 9}}]
)
def test_merged_weights_are_those_of_peft(make_base, tmp_path, kind, options):
    base = make_base(kind)
    model = add_lora(base, tmp_path / "adapter", **options)
    report = merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    assert report.difference.largest < 1e-4
    wanted = model.merge_and_unload().state_dict()
    merged = load(tmp_path / "merged").state_dict()
    before = load(base).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=0)
    changed = {name for name in before if not before[name].equal(merged[name])}
    assert changed == {f"{module}.weight" for module in open_adapter(tmp_path / "adapter").modules}
    for name in ("adapt.json", "generation_config.json", "original/config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_keeps_its_dtype(make_base, tmp_path, dtype):
    base = make_base(dtype=dtype)
    add_lora(base, tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    assert report.difference.is_within
    assert open_checkpoint(tmp_path / "merged").specs == open_checkpoint(base).specs
    wanted = open_adapter(tmp_path / "adapter")
    module = "model.language_model.layers.0.self_attn.o_proj"
    disk = "language_model.model.layers.0.self_attn.o_proj.weight"
    before = open_checkpoint(base).read(disk).float() + wanted.delta(module)
    assert open_checkpoint(tmp_path / "merged").read(disk).equal(before.to(dtype))


def test_merge_that_does_nothing_is_caught(make_base, tmp_path, monkeypatch):
    base = make_base()
    add_lora(base, tmp_path / "adapter")
    monkeypatch.setattr(Adapter, "delta", lambda self, module: torch.zeros(()))
    with pytest.raises(CheckFailed, match=r"base with .*adapter and .*merged do not compute"):
        merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_command_takes_a_run_folder(make_base, tmp_path, capsys):
    base = make_base()
    add_lora(base, tmp_path / "run" / "adapter")
    arguments = ["models", "merge", str(tmp_path / "run"), str(base)]
    assert run([*arguments, "--out", str(tmp_path / "merged")]) == 0
    assert "internlm2, 87 tensors in, 67 out" in capsys.readouterr().out
    assert run([*arguments, "--out", str(tmp_path / "merged")]) == 2
    assert "is there already" in capsys.readouterr().err


def edit_config(**changes):
    def damage(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def edit_tensors(change):
    def damage(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def become_a_pickle(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
BAD = {
    "pickle": (become_a_pickle, r"a pickled adapter_model.bin can run any code and is not read"),
    "no config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        r"adapter_config.json: no such file; expected a LoRA adapter",
    ),
    "not LoRA": (edit_config(peft_type="IA3"), r"peft_type is 'IA3', expected 'LORA'"),
    "DoRA": (edit_config(use_dora=True), r"use_dora is True, .*merge_and_unload"),
    "trained biases": (edit_config(bias="all"), r"bias is 'all', expected 'none'"),
    "whole modules": (edit_config(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'"),
    "no alpha": (edit_config(lora_alpha=None), r"has no lora_alpha; it is not a LoRA adapter"),
    "half of a pair": (
        edit_tensors(lambda tensors: tensors.pop(f"{FIRST}B.weight")),
        rf"expected a lora_A and a lora_B for each module, found otherwise for {FIRST}B.weight",
    ),
    "ranks that differ": (
        edit_tensors(lambda tensors: tensors.update({f"{FIRST}B.weight": torch.ones(16, 3)})),
        r"q_proj has lora_A \[2, 16\] and lora_B \[16, 3\], expected \[rank, in\]",
    ),
    "rank of another adapter": (
        edit_config(r=3),
        r"layers.0.mlp.up_proj has rank 2, but adapter_config.json gives 3; the two files are of ",
    ),
    "rank of one module": (
        edit_config(rank_pattern={"q_proj": 8}),
        r"q_proj has rank 2, but adapter_config.json gives 8; ",
    ),
    "no pattern": (
        edit_config(alpha_pattern={"(": 3}),
        r"alpha_pattern is \{'\(': 3\}, expected regular expressions",
    ),
    "base that is no name": (
        edit_config(base_model_name_or_path=["a"]),
        r"base_model_name_or_path is \['a'\], expected a path or a name",
    ),
    "what peft refuses": (
        edit_config(target_modules="("),
        r"adapter_config.json: peft refuses it: missing \)",
    ),
    "whole numbers": (
        edit_tensors(lambda tensors: tensors.update({f"{FIRST}A.weight": torch.ones(2, 16).int()})),
        rf"{FIRST}A.weight has dtype I32, expected floating point",
    ),
    "cut off": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x09"),
        r"adapter_model.safetensors: not a readable safetensors file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_are_one_clear_line_and_nothing_is_written(make_base, tmp_path, case):
    base = make_base()
    add_lora(base, tmp_path / "adapter")
    damage, message = BAD[case]
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=message) as caught:
        merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "adapter") in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_lora_of_another_architecture(make_base, tmp_path):
    add_lora(make_base(), tmp_path / "adapter")
    other = make_base("phi3", "other")
    with pytest.raises(CheckpointError, match=r"is a LoRA of another base than .*other: model.*q_"):
        merge_adapter(tmp_path / "adapter", other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_lora_of_another_size(make_base, tmp_path):
    base = make_base()
    add_lora(base, tmp_path / "adapter")
    wide = make_base(name="wide", llm={"intermediate_size": 32})
    with pytest.raises(
        CheckpointError, match=r"mlp.up_proj is \[32, 16\], not \[24, 16\].* trained on .*base"
    ):
        merge_adapter(tmp_path / "adapter", wide, tmp_path / "merged")


def test_lora_of_the_same_sizes_but_other_weights(make_base, tmp_path):
    base = make_base()
    add_lora(base, tmp_path / "adapter")
    other = tmp_path / "other"
    model = load(base)
    with torch.no_grad():
        model.get_parameter("model.language_model.norm.weight")[3] += 1
    shutil.copytree(base, other)
    model.save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"was trained on .*base, whose weights are not thos"):
        merge_adapter(tmp_path / "adapter", other, tmp_path / "merged")
    # A copy of the base under another name is the base.
    shutil.copytree(base, tmp_path / "copy")
    merge_adapter(tmp_path / "adapter", tmp_path / "copy", tmp_path / "merged", verify=False)
    assert (tmp_path / "merged" / "config.json").exists()


def test_lora_of_another_preset(make_base, tmp_path):
    base = make_base()
    add_lora(base, tmp_path / "adapter")
    edit_config(base_model_name_or_path="mini-internvl2-2b-da-rs")(tmp_path / "adapter")
    card = json.loads((base / "adapt.json").read_text())
    (base / "adapt.json").write_text(json.dumps(card | {"preset": "mini-internvl2-2b"}))
    with pytest.raises(CheckpointError, match=r"was trained on mini-internvl2-2b-da-rs, whose wei"):
        merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    (base / "adapt.json").write_text(json.dumps(card | {"preset": "mini-internvl2-2b-da-rs"}))
    merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")


def test_fingerprint_is_of_the_weights_alone(make_base, tmp_path):
    base = make_base()
    first = fingerprint(open_checkpoint(base))
    shutil.copytree(base, tmp_path / "copy")
    assert fingerprint(open_checkpoint(tmp_path / "copy")) == first
    other = make_base(name="other", dtype=torch.bfloat16)
    assert fingerprint(open_checkpoint(other)) != first


def test_adapter_on_an_original_base(make_original, make_base, tmp_path):
    add_lora(make_base(), tmp_path / "adapter")
    source = make_original(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"source/config.json: .*adapt models import makes"):
        merge_adapter(tmp_path / "adapter", source, tmp_path / "merged")
