"""Presets: complete, buildable, and of the sizes the model cards state."""

import msgspec
import pytest
import torch

from adapt.errors import UsageError
from adapt.models.chat import template_names
from adapt.models.presets import (
    ParameterCounts,
    count_parameters,
    load_preset,
    model_class,
    preset_names,
)

DOMAINS = ("bdd", "drivelm", "medical", "rs")
MINI = ("mini-internvl2-1b", "mini-internvl2-2b", "mini-internvl2-4b")
NATIVE = (
    *(f"internvl2_5-{size}-hf" for size in ("1b", "2b", "4b", "8b")),
    *(f"internvl3-{size}-hf" for size in ("1b", "2b", "8b")),
)
# Of the Mini-InternVL 2.0 page: total B, vision M, projector M, language B.
MODEL_CARDS = {
    "mini-internvl2-1b": (0.94, 304.01, 4.48, 0.63),
    "mini-internvl2-2b": (2.21, 304.01, 12.60, 1.89),
    "mini-internvl2-4b": (4.15, 304.01, 22.03, 3.82),
}


def test_every_preset_the_project_promises_is_there() -> None:
    adapted = [f"{name}-da-{domain}" for name in MINI for domain in DOMAINS]
    assert preset_names() == sorted([*MINI, *adapted, *NATIVE, "mono-internvl-2b", "tiny"])


@pytest.mark.parametrize("name", [*MINI, *NATIVE, "mono-internvl-2b", "tiny"])
def test_counts_are_those_of_the_model_it_builds(name: str) -> None:
    preset = load_preset(name)
    with torch.device("meta"):
        model = model_class(preset.architecture)(preset.config(image_token_id=7))
    assert count_parameters(model) == preset.parameters
    assert model.config.image_token_id == 7
    # An untied head is a parameter of its own; the default of InternVLConfig would tie it.
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.shape[0] == preset.text["vocab_size"]


@pytest.mark.parametrize("name", MINI)
def test_counts_are_those_of_the_model_card(name: str) -> None:
    counts = load_preset(name).parameters
    rounded = (
        round(counts.total / 1e9, 2),
        round(counts.vision / 1e6, 2),
        round(counts.projector / 1e6, 2),
        round(counts.language / 1e9, 2),
    )
    assert rounded == MODEL_CARDS[name]


def test_mono_has_the_three_billion_parameters_it_states() -> None:
    counts = load_preset("mono-internvl-2b").parameters
    text_experts_alone = load_preset("mini-internvl2-2b").parameters.language
    assert round(counts.total / 1e9, 2) == 3.11
    assert counts.language - text_experts_alone == 24 * 3 * 2048 * 8192


@pytest.mark.parametrize("name", MINI)
@pytest.mark.parametrize("domain", DOMAINS)
def test_adapted_models_differ_from_their_base_in_name_and_place_only(
    name: str, domain: str
) -> None:
    base, adapted = load_preset(name), load_preset(f"{name}-da-{domain}")
    assert adapted.hub_id == f"OpenGVLab/{adapted.title}"
    assert adapted.title.lower() == adapted.name
    same = msgspec.structs.replace(
        adapted,
        name=base.name,
        title=base.title,
        hub_id=base.hub_id,
        source=base.source,
        tokenizer=base.tokenizer,
    )
    assert same == base


@pytest.mark.parametrize("name", preset_names())
def test_facts_fit_each_other(name: str) -> None:
    preset = load_preset(name)
    assert preset.template in template_names()
    assert (preset.hub_id is None) == (preset.layout == "none")
    assert (preset.tokenizer_folder is None) == (preset.layout != "none")
    assert preset.tokens_per_tile == (16 if name == "tiny" else 256)
    assert preset.tile_px == 448
    assert {"<img>", "</img>", "<IMG_CONTEXT>"} <= set(preset.tokens)
    parts = preset.parameters
    assert parts.total == parts.vision + parts.projector + parts.language


def test_building_a_config_leaves_the_preset_as_it_was() -> None:
    before = msgspec.json.encode(load_preset("mini-internvl2-4b"))
    load_preset("mini-internvl2-4b").config(1).text_config.rope_parameters["factor"] = 3.0
    assert msgspec.json.encode(load_preset("mini-internvl2-4b")) == before


def test_tiny_is_well_under_a_million() -> None:
    assert load_preset("tiny").parameters.total < 700_000


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("mini-internvl2-1b", {"rope_type": "default", "rope_theta": 1e6}),
        ("mini-internvl2-2b", {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_rope_is_carried(name: str, rope: dict[str, object]) -> None:
    config = load_preset(name).config(1).text_config
    assert {key: config.rope_parameters[key] for key in rope} == rope
    assert config.tie_word_embeddings is False


def test_long_rope_has_a_factor_for_each_pair_of_a_head() -> None:
    rope = load_preset("mini-internvl2-4b").config(1).text_config.rope_parameters
    assert rope["rope_type"] == "longrope"
    assert rope["original_max_position_embeddings"] == 4096
    assert len(rope["short_factor"]) == len(rope["long_factor"]) == 3072 // 32 // 2


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_preset("mini-internvl2-2bb")
    assert str(caught.value) == (
        "no model preset is called mini-internvl2-2bb (did you mean mini-internvl2-2b?)"
    )


def test_a_name_is_no_path() -> None:
    with pytest.raises(UsageError):
        load_preset("../presets/tiny")
    with pytest.raises(UsageError):
        load_preset("_internvit-300m")


def test_counting_knows_the_parts_apart() -> None:
    preset = load_preset("tiny")
    model = model_class("internvl")(preset.config(5))
    vision = sum(p.numel() for p in model.model.vision_tower.parameters())
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    rest = sum(p.numel() for p in model.model.language_model.parameters())
    assert count_parameters(model) == ParameterCounts(
        total=vision + projector + rest + model.lm_head.weight.numel(),
        vision=vision,
        projector=projector,
        language=rest + model.lm_head.weight.numel(),
    )
