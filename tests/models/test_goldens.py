"""The golden checkpoints: logits, losses, gradients and answers of the reference implementation."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    InternVLForConditionalGeneration,
)

from adapt.models.card import Card, read_card
from adapt.models.checkpoint_config import native_config, read_config
from adapt.models.importing import import_checkpoint
from adapt.models.known_layouts import layout_of_native
from adapt.models.mono import MonoInternVLForConditionalGeneration
from adapt.models.shards import open_checkpoint

KINDS = ("qwen2", "internlm2", "phi3", "mono")
IMAGE_TOKEN = 5


def model_class(kind):
    return (
        MonoInternVLForConditionalGeneration if kind == "mono" else InternVLForConditionalGeneration
    )


@pytest.fixture(scope="module", params=KINDS)
def golden(request, shared, tmp_path_factory):
    """A golden checkpoint, imported, with its inputs and what the reference gives."""
    folder = shared / "goldens" / "checkpoints" / request.param
    expected = json.loads((folder / "expected.json").read_text())
    out = tmp_path_factory.mktemp("imported") / request.param
    report = import_checkpoint(folder, out, image_token_id=expected["image_token_id"])
    inputs = load_file(folder / "inputs.safetensors")
    del inputs["pixel_values_seed"]
    inputs["pixel_values"] = inputs["pixel_values"].float()
    return SimpleNamespace(
        kind=request.param,
        source=folder,
        out=out,
        report=report,
        inputs=inputs,
        expected=expected,
        tensors=load_file(folder / "expected.safetensors"),
    )


def load(golden, folder=None, dtype=torch.float32):
    model, info = model_class(golden.kind).from_pretrained(
        folder or golden.out, dtype=dtype, output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


def test_golden_computes_what_the_reference_does(golden):
    model = load(golden)
    with torch.no_grad():
        output = model(**golden.inputs, use_cache=False)
    supervised = golden.inputs["labels"][:, 1:] != -100
    logits = output.logits[:, :-1][supervised]
    wanted = golden.tensors
    torch.testing.assert_close(logits, wanted["logits_supervised"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        output.image_hidden_states[0], wanted["image_features_first_tile"], atol=1e-4, rtol=0
    )
    assert output.loss.item() == pytest.approx(golden.expected["loss"], abs=1e-5)
    weights = torch.tensor(golden.expected["loss_weight_of_supervised_tokens"])
    losses = torch.nn.functional.cross_entropy(
        logits, golden.inputs["labels"][:, 1:][supervised], reduction="none"
    )
    weighted = (losses * weights).sum() / weights.sum()
    assert weighted.item() == pytest.approx(golden.expected["weighted_loss"], abs=1e-5)


def test_golden_has_the_gradients_of_the_reference(golden):
    model = load(golden)
    model(**golden.inputs, use_cache=False).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    fields = read_config(golden.out)
    pairs = layout_of_native(fields).pairs(native_config(fields))
    wanted = golden.expected["grad_norms"]
    assert {pair.original for pair in pairs} == wanted.keys()
    for pair in pairs:
        parts = torch.cat([grads[name].flatten() for name in pair.native])
        if wanted[pair.original] == 0:
            assert parts.norm().item() < 1e-8, pair.original
        else:
            assert parts.norm().item() == pytest.approx(wanted[pair.original], rel=1e-3), pair


def test_golden_in_bfloat16_loses_little(golden):
    model = load(golden, dtype=torch.bfloat16)
    inputs = {**golden.inputs, "pixel_values": golden.inputs["pixel_values"].bfloat16()}
    with torch.no_grad():
        loss = model(**inputs, use_cache=False).loss.item()
    assert loss == pytest.approx(golden.expected["loss"], rel=0.02)


def test_golden_is_saved_and_loaded_again(golden, tmp_path):
    model = load(golden)
    model.save_pretrained(tmp_path / "saved")
    again = load(golden, tmp_path / "saved")
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in again.named_parameters()] == names
    state = again.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    saved = open_checkpoint(tmp_path / "saved").specs
    assert saved == open_checkpoint(golden.out).specs


def test_golden_generates_what_its_logits_say(golden):
    model = load(golden)
    prompt = {
        "input_ids": golden.inputs["input_ids"],
        "pixel_values": golden.inputs["pixel_values"],
    }
    with torch.no_grad():
        written = model.generate(
            **prompt,
            attention_mask=torch.ones_like(prompt["input_ids"]),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=-1,
        )
        # Without a cache, all at once: each token is the likeliest after those before it.
        logits = model(
            input_ids=written[:, :-1], pixel_values=prompt["pixel_values"], use_cache=False
        ).logits
    start = prompt["input_ids"].shape[1]
    assert written.shape[1] == start + 4
    assert written[0, start:].tolist() == logits[0, start - 1 :].argmax(-1).tolist()


def test_golden_report_and_card(golden):
    counts = {"qwen2": (65, 73), "internlm2": (55, 67), "phi3": (53, 61), "mono": (33, 37)}
    report = golden.report
    assert (report.tensors_in, report.tensors_out) == counts[golden.kind]
    assert report.layout == golden.kind
    assert report.difference.largest < 1e-5
    # A picture with text; beyond the switch of the rope too, where there is one.
    assert report.difference.tokens == 40 + (0 if golden.kind == "qwen2" else 16)
    template = read_config(golden.source)["template"]
    assert read_card(golden.out) == Card(template=template, tile_px=448, tokens_per_tile=256)
    assert sorted(path.name for path in golden.out.iterdir()) == [
        "adapt.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "original",
    ]
    config = read_config(golden.out)
    assert (config["tie_word_embeddings"], config["image_token_id"]) == (False, 500)
    assert config["architectures"] == [model_class(golden.kind).__name__]
