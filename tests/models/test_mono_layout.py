"""Mono-InternVL against the reference implementation, and its layout there and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapt.errors import CheckpointError
from adapt.models.known_layouts import layout_of_native, layout_of_original
from adapt.models.mono import MonoInternVLForConditionalGeneration
from adapt.models.mono_layout import MONO_LAYOUT


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "goldens" / "checkpoints" / "mono"


@pytest.fixture(scope="module")
def expected(golden) -> dict:
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module")
def inputs(golden) -> dict[str, torch.Tensor]:
    tensors = load_file(golden / "inputs.safetensors")
    return {
        "input_ids": tensors["input_ids"],
        "labels": tensors["labels"],
        "pixel_values": tensors["pixel_values"].float(),
    }


@pytest.fixture
def model(golden, expected) -> MonoInternVLForConditionalGeneration:
    original = json.loads((golden / "config.json").read_text())
    config = MONO_LAYOUT.import_config(original, expected["image_token_id"])
    source = load_file(golden / "model.safetensors")
    native = {}
    for pair in MONO_LAYOUT.pairs(config):
        parts = pair.cut.split(source.pop(pair.original))
        native.update(zip(pair.native, parts, strict=True))
    assert source == {}
    model = MONO_LAYOUT.build(config)
    model.load_state_dict(native)
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_of_the_reference(model, golden, expected, inputs, attention, training):
    model.train(training).set_attn_implementation(attention)
    with torch.no_grad():
        output = model(**inputs, use_cache=False)
    reference = load_file(golden / "expected.safetensors")
    supervised = inputs["labels"][:, 1:] != -100
    logits = output.logits[:, :-1][supervised]
    torch.testing.assert_close(logits, reference["logits_supervised"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        output.image_hidden_states[0], reference["image_features_first_tile"], atol=1e-4, rtol=0
    )
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    weights = torch.tensor(expected["loss_weight_of_supervised_tokens"])
    losses = torch.nn.functional.cross_entropy(
        logits, inputs["labels"][:, 1:][supervised], reduction="none"
    )
    weighted = (losses * weights).sum() / weights.sum()
    assert weighted.item() == pytest.approx(expected["weighted_loss"], abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_norms_of_the_reference(model, expected, inputs, checkpointing):
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model(**inputs, use_cache=False).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = {
        pair.original: torch.cat([grads[name].flatten() for name in pair.native]).norm().item()
        for pair in MONO_LAYOUT.pairs(model.config)
    }
    assert norms.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-8), name


def test_bfloat16_loss_stays_within_two_percent(model, expected, inputs):
    with torch.no_grad():
        loss = model.to(torch.bfloat16)(**inputs).loss.item()
    assert loss == pytest.approx(expected["loss"], rel=0.02)


def test_generation_with_cache_equals_generation_without(model, inputs):
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    prompt = {name: inputs[name] for name in ("input_ids", "pixel_values")}
    cached = model.generate(**prompt, **options)
    assert cached.shape == (1, inputs["input_ids"].shape[1] + 8)
    assert torch.equal(cached, model.generate(**prompt, **options, use_cache=False))


def test_back_to_the_original_layout_bit_for_bit(model, golden):
    source = load_file(golden / "model.safetensors")
    state = model.state_dict()
    back = {}
    for pair in MONO_LAYOUT.pairs(model.config):
        back[pair.original] = pair.cut.join([state.pop(name) for name in pair.native])
    assert state == {}
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], source[name]) for name in source)


def test_pairs_are_a_bijection_onto_the_parameters(model):
    pairs = MONO_LAYOUT.pairs(model.config)
    native = [name for pair in pairs for name in pair.native]
    assert sorted(native) == sorted(model.state_dict())
    assert len({pair.original for pair in pairs}) == len(pairs)


def test_config_there_and_back(golden, model):
    original = json.loads((golden / "config.json").read_text())
    again = MONO_LAYOUT.export_config(model.config)
    assert layout_of_original(again) is MONO_LAYOUT
    assert layout_of_native(model.config.to_dict()) is MONO_LAYOUT
    imported = MONO_LAYOUT.import_config(again, model.config.image_token_id)
    assert imported.to_dict() == model.config.to_dict()
    section = original["llm_config"]
    text = model.config.text_config
    assert text.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    for name in ("hidden_size", "vocab_size", "num_key_value_heads", "rms_norm_eps"):
        assert getattr(text, name) == section[name]
    assert not text.attention_bias
    assert not model.config.tie_word_embeddings


def test_tiles_of_another_size_than_the_positions_are_refused(golden):
    original = json.loads((golden / "config.json").read_text())
    original["force_image_size"] = 224
    with pytest.raises(CheckpointError, match=r"force_image_size is 224, but vision_config"):
        MONO_LAYOUT.import_config(original, 500)
