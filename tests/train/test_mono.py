"""Whole runs of Mono-InternVL: what each stage and method changes, ranks, resuming, answers."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from adapt.models.card import Card, write_card
from adapt.models.mono import MonoInternVLConfig, MonoInternVLForConditionalGeneration
from adapt.models.presets import load_preset
from adapt.predict import PredictOptions, run_predict
from adapt.train.launch import run_train

RECIPE = {
    "model": "mono",
    "mix": "mix",
    "dtype": "fp32",
    "max_tiles": 4,
    "max_record_tokens": 400,
    "max_pack_tokens": 400,
    "max_pack_tiles": 40,
    "gradient_accumulation": 2,
    "learning_rate": 2e-3,
    "max_steps": 2,
    "save_every": 1,
    "data_workers": 0,
    "tensorboard": False,
}
VISUAL = (
    *(f"model.multi_modal_projector.{name}" for name in ("layer_norm", "linear_1", "linear_2")),
    "model.vision_embeddings.patch_embeddings",
    "model.vision_embeddings.position_embeddings",
    *(f"model.language_model.layers.{layer}.visual_mlp" for layer in (0, 1)),
)
ATTENTION = tuple(f"model.language_model.layers.{layer}.self_attn" for layer in (0, 1))
TEXT_EXPERTS = tuple(f"model.language_model.layers.{layer}.mlp" for layer in (0, 1))


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.1 M parameters with the tiny tokenizer: tiles of 56 pixels, 4 tokens."""
    folder = tmp_path_factory.mktemp("mono")
    tokenizer = load_preset("tiny").tokenizer_folder
    for path in tokenizer.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    text = LlamaConfig(
        vocab_size=load_preset("tiny").text["vocab_size"],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        initializer_range=0.2,
    )
    vision = InternVLVisionConfig(
        hidden_size=8, image_size=[56, 56], patch_size=[14, 14], initializer_range=0.2
    )
    config = MonoInternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=next(t["id"] for t in vocabulary if t["content"] == "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    torch.manual_seed(5)
    MonoInternVLForConditionalGeneration(config).save_pretrained(folder)
    write_card(folder, Card(template="internvl2_5", tile_px=56, tokens_per_tile=4))
    return folder


@pytest.fixture
def recipe(mix: Path, mono: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(mix.parent)
    Path("mono").symlink_to(mono)
    path = Path("mono.yaml")
    path.write_text(yaml.safe_dump(RECIPE))
    # ZeRO-3 that shards every parameter, however small.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}
    Path("sharded.json").write_text(json.dumps({"zero_optimization": zero}))
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(run: Path, base: Path) -> set[str]:
    before, after = weights_of(base), weights_of(run / "model")
    assert before.keys() == after.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def named(base: Path, *prefixes: str) -> set[str]:
    return {name for name in weights_of(base) if name.startswith(prefixes)}


def read_metrics(run: Path) -> list[dict[str, float]]:
    rows = [msgspec.json.decode(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("s", "tokens_per_s")} for row in rows]


@pytest.mark.parametrize("stage", ["concept", "semantic", "alignment", "instruction"])
def test_a_stage_changes_its_parts_alone(
    recipe: Path, mono: Path, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    run_train(recipe, (f"stage={stage}", "out=run"))
    assert "packing: two records in a pack equal the same apart" in capfd.readouterr().out
    parts = {"alignment": (*VISUAL, *ATTENTION), "instruction": ("",)}.get(stage, VISUAL)
    # The class token is kept for the way back to the original layout; nothing reads it.
    expected = named(mono, *parts) - {"model.vision_embeddings.cls_token"}
    assert changed(Path("run"), mono) == expected


# peft asks transformers by an older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("vision", [False, True])
def test_adapters_change_attention_and_experts(recipe: Path, mono: Path, vision: bool) -> None:
    options = ("method=lora", f"lora.vision={vision}".lower(), "deepspeed=sharded.json", "out=run")
    run_train(recipe, options)
    # What the last layer makes of image tokens meets no head: its visual expert learns nothing.
    experts = ("model.language_model.layers.0.visual_mlp",) if vision else ()
    parts = (*ATTENTION, *TEXT_EXPERTS, *experts)
    assert changed(Path("run"), mono) == named(mono, *parts)
    assert "after `import adapt.models.mono`" in Path("run/README.md").read_text()


def test_two_processes_resuming_and_answers(recipe: Path) -> None:
    sharded = "deepspeed=sharded.json"
    run_train(recipe, (sharded, "out=one"))
    run_train(recipe, (sharded, "gradient_accumulation=1", "out=two"), nproc=2)
    one, two = read_metrics(Path("one")), read_metrics(Path("two"))
    for name in ("loss", "grad_norm"):
        expected = pytest.approx([row.pop(name) for row in one], rel=1e-4)
        assert [row.pop(name) for row in two] == expected
    assert one == two

    weights, metrics = weights_of(Path("one/model")), read_metrics(Path("one"))
    for gone in ("one/model", "one/checkpoints/step-2"):
        shutil.rmtree(gone)
    Path("one/checkpoints/latest").write_text("step-1\n")
    run_train(recipe, (sharded, "out=one"), resume=True)
    assert read_metrics(Path("one")) == metrics
    resumed = weights_of(Path("one/model"))
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())

    records = Path("colours/train.jsonl")
    options = PredictOptions(
        records=records, model="one", out=Path("answers.jsonl"), limit=4, max_new_tokens=3
    )
    lines = [msgspec.json.decode(line) for line in run_predict(options).read_bytes().splitlines()]
    assert [line["id"] for line in lines] == [f"colours/train/{number}" for number in range(4)]
    assert all(1 <= line["answer_tokens"] <= 3 and line["answer"] for line in lines)
