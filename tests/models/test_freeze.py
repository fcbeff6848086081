"""Which parameters each method and stage trains, and which modules get a LoRA."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from adapt.errors import RecipeError
from adapt.models.drop_path import inject_drop_path
from adapt.models.freeze import (
    FreezeReport,
    freeze,
    lora_pattern,
    lora_targets,
    report_parameters,
    train_mode,
)
from adapt.models.mono import MonoInternVLConfig, MonoInternVLForConditionalGeneration

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SIZES = {"image_token_id": 30, "image_seq_length": 4, "tie_word_embeddings": False}


def make_modular(text: type = Qwen2Config) -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        text_config=text(**TEXT),
        vision_config=InternVLVisionConfig(**VISION, num_hidden_layers=2),
        **SIZES,
    )
    return InternVLForConditionalGeneration(config)


def make_mono() -> MonoInternVLForConditionalGeneration:
    config = MonoInternVLConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=InternVLVisionConfig(**VISION, num_hidden_layers=0),
        **SIZES,
    )
    return MonoInternVLForConditionalGeneration(config)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def every(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def linear_of(prefix: str, *modules: str, layers: int = 2) -> list[str]:
    return [f"{prefix}.{layer}.{module}" for layer in range(layers) for module in modules]


def test_full_trains_everything_whatever_was_frozen_before():
    model = make_modular()
    freeze(model, "lora")
    report = freeze(model, "full")
    assert trained(model) == every(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report == FreezeReport(trainable=total, total=total)


def test_freeze_vit_freezes_the_tower_alone_and_puts_it_in_eval_mode():
    model = make_modular().train()
    report = freeze(model, "freeze-vit")
    tower = {name for name in every(model) if name.startswith("model.vision_tower.")}
    assert tower
    assert trained(model) == every(model) - tower
    frozen = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert (report.total - report.trainable, report.total) == (
        frozen,
        sum(parameter.numel() for parameter in model.parameters()),
    )
    assert not any(module.training for module in model.model.vision_tower.modules())
    assert model.model.language_model.training
    assert model.model.multi_modal_projector.training


def test_train_mode_keeps_a_frozen_tower_in_eval_and_drop_path_off():
    model = make_modular()
    inject_drop_path(model, 0.9)
    freeze(model, "freeze-vit")
    train_mode(model)
    assert model.training
    assert not model.model.vision_tower.training
    pixels = torch.randn(8, 3, 56, 56)
    first, second = (model.model.vision_tower(pixels).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    freeze(model, "full")
    train_mode(model)
    assert model.model.vision_tower.training
    first, second = (model.model.vision_tower(pixels).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("make", [make_modular, make_mono])
def test_lora_freezes_the_whole_base(make, method):
    model = make()
    report = freeze(model, method)
    assert trained(model) == set()
    assert (report.trainable, report.total) == (0, sum(p.numel() for p in model.parameters()))


VISUAL = {
    "model.vision_embeddings.cls_token",
    "model.vision_embeddings.position_embeddings",
    "model.vision_embeddings.patch_embeddings.projection.weight",
    "model.vision_embeddings.patch_embeddings.projection.bias",
    *(
        f"model.multi_modal_projector.{module}.{leaf}"
        for module in ("layer_norm", "linear_1", "linear_2")
        for leaf in ("weight", "bias")
    ),
    *(
        f"{name}.weight"
        for name in linear_of(
            "model.language_model.layers",
            "visual_mlp.gate_proj",
            "visual_mlp.up_proj",
            "visual_mlp.down_proj",
        )
    ),
}
ATTENTION = {
    f"{name}.weight"
    for name in linear_of(
        "model.language_model.layers",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
    )
}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("concept", VISUAL), ("semantic", VISUAL), ("alignment", VISUAL | ATTENTION)],
)
def test_stages_of_mono_internvl(stage, expected):
    model = make_mono()
    report = freeze(model, "full", stage)
    assert trained(model) == expected
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert report == FreezeReport(
        trainable=sum(sizes[name] for name in expected), total=sum(sizes.values())
    )


@pytest.mark.parametrize("stage", ["instruction", None])
def test_the_last_stage_trains_everything(stage):
    model = make_mono()
    freeze(model, "full", "concept")
    freeze(model, "full", stage)
    assert trained(model) == every(model)


def test_a_step_of_the_first_stage_moves_only_what_it_trains():
    torch.manual_seed(0)
    model = make_mono()
    freeze(model, "full", "concept")
    train_mode(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    ids = torch.tensor([[1, 30, 30, 30, 30, 5, 6, 7]])
    loss = model(
        input_ids=ids, labels=ids, pixel_values=torch.randn(1, 3, 56, 56), use_cache=False
    ).loss
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # The class token is kept for the original layout only: its gradient is zero.
    assert moved == VISUAL - {"model.vision_embeddings.cls_token"}


@pytest.mark.parametrize(
    ("make", "method", "stage", "message"),
    [
        (make_modular, "freeze_vit", None, r"unknown method 'freeze_vit' .did you mean freeze-vit"),
        (make_mono, "full", "semantics", r"unknown stage 'semantics' .did you mean semantic"),
        (make_modular, "full", "concept", r"concept is a training stage of Mono-InternVL"),
        (make_mono, "lora", "concept", r"concept goes with method full, found method lora"),
        (make_mono, "freeze-vit", None, r"freeze-vit needs a vision tower, MonoInternVLFor"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_frozen(make, method, stage, message):
    model = make()
    with pytest.raises(RecipeError, match=message) as caught:
        freeze(model, method, stage)
    assert "\n" not in str(caught.value)
    assert trained(model) == every(model)


def test_a_report_reads_as_a_sentence():
    assert str(FreezeReport(250, 1000)) == "250 of 1,000 parameters are trained (25.0%)"
    assert str(FreezeReport(0, 0)) == "0 of 0 parameters are trained (0.0%)"


def test_shared_weights_count_once():
    layer = torch.nn.Linear(3, 5, bias=False)
    assert report_parameters(torch.nn.Sequential(layer, layer)) == FreezeReport(15, 15)


SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LANGUAGE_MODULES = {
    Qwen2Config: (*SPLIT, *GATED),
    LlamaConfig: (*SPLIT, *GATED),
    Phi3Config: (
        "self_attn.o_proj",
        "self_attn.qkv_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ),
}
TOWER = linear_of(
    "model.vision_tower.encoder.layer",
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.projection_layer",
    "mlp.fc1",
    "mlp.fc2",
)


@pytest.mark.parametrize("text", LANGUAGE_MODULES)
def test_lora_targets_of_the_modular_models(text):
    model = make_modular(text)
    language = linear_of("model.language_model.layers", *LANGUAGE_MODULES[text])
    assert sorted(lora_targets(model, vision=False)) == sorted(language)
    assert sorted(lora_targets(model, vision=True)) == sorted(language + TOWER)


def test_lora_targets_of_mono_internvl():
    model = make_mono()
    language = linear_of("model.language_model.layers", *SPLIT, *GATED)
    experts = linear_of("model.language_model.layers", *(f"visual_{module}" for module in GATED))
    assert sorted(lora_targets(model, vision=False)) == sorted(language)
    assert sorted(lora_targets(model, vision=True)) == sorted(language + experts)


# peft asks transformers for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("make", [make_modular, make_mono])
def test_peft_wraps_exactly_the_targets_by_list_and_by_pattern(make, vision):
    for targets in (lora_targets, lora_pattern):
        model = make()
        expected = lora_targets(model, vision=vision)
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=targets(model, vision=vision))
        )
        wrapped = [
            re.sub(r"^base_model\.model\.|\.lora_A$", "", name)
            for name, _ in adapted.named_modules()
            if name.endswith(".lora_A")
        ]
        assert wrapped == expected


def test_lora_of_another_model_is_refused():
    with pytest.raises(RecipeError, match=r"lora: Linear has no module that matches .*import"):
        lora_targets(torch.nn.Linear(2, 2), vision=True)
