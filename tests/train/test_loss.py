"""Weights of tokens, and the loss in chunks, against the whole."""

import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from adapt.train.loss import num_chunks, token_weight, weighted_cross_entropy


@pytest.mark.parametrize(
    ("reduction", "expected"), [("token", 1.0), ("sample", 1 / 9), ("square", 1 / 3)]
)
def test_weight_of_a_token(reduction: str, expected: float) -> None:
    assert token_weight(9, reduction) == pytest.approx(expected)
    assert token_weight(0, reduction) == 0.0


@given(st.integers(1, 10**6))
def test_a_record_counts_by_its_tokens(count: int) -> None:
    assert count * token_weight(count, "token") == count
    assert count * token_weight(count, "sample") == pytest.approx(1)
    assert count * token_weight(count, "square") == pytest.approx(math.sqrt(count))


@given(st.integers(0, 10_000), st.integers(1, 2000))
def test_no_chunk_is_longer_than_asked(supervised: int, chunk_tokens: int) -> None:
    chunks = num_chunks(supervised, chunk_tokens)
    assert chunks >= 1
    sizes = [len(part) for part in torch.zeros(supervised).tensor_split(chunks)]
    assert max(sizes) <= chunk_tokens
    assert chunks == 1 or num_chunks(supervised, chunk_tokens + supervised) == 1


@settings(max_examples=25)
@given(
    supervised=st.integers(0, 23),
    chunks=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_in_chunks_as_at_once(supervised: int, chunks: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    head = nn.Linear(6, 11, bias=False)
    hidden = torch.randn(supervised, 6, generator=draw, requires_grad=True)
    targets = torch.randint(0, 11, (supervised,), generator=draw)
    weights = torch.rand(supervised, generator=draw)

    plain = (functional.cross_entropy(head(hidden), targets, reduction="none") * weights).sum()
    expected = torch.autograd.grad(plain, [hidden, head.weight])
    found = weighted_cross_entropy(hidden, targets, weights, head, chunks=chunks)
    gradients = torch.autograd.grad(found, [hidden, head.weight])

    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradients, expected)


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    shapes = []
    head = nn.Linear(4, 50)
    head.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape[0]))
    hidden = torch.randn(100, 4, requires_grad=True)
    targets = torch.zeros(100, dtype=torch.int64)
    loss = weighted_cross_entropy(hidden, targets, torch.ones(100), head, chunks=10)
    assert shapes == [10] * 10
    loss.backward()
    # Each chunk is made once more, alone, on the way back.
    assert shapes == [10] * 20


def test_without_a_supervised_token_gradients_are_zero_not_missing() -> None:
    head = nn.Linear(4, 5)
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = weighted_cross_entropy(
        hidden, torch.zeros(0, dtype=torch.int64), torch.zeros(0), head, chunks=3
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(head.weight.grad, torch.zeros(5, 4))


@pytest.mark.parametrize("name", ["qwen2", "internlm2", "phi3", "mono"])
def test_golden_weighted_loss(shared: Path, tmp_path: Path, name: str) -> None:
    """The reference trainer's weighted loss, and its plain one, from its own checkpoints."""
    import orjson
    from safetensors.torch import load_file

    from adapt.models.importing import import_checkpoint
    from adapt.models.presets import model_class

    source = shared / "goldens" / "checkpoints" / name
    expected = orjson.loads((source / "expected.json").read_bytes())
    out = tmp_path / name
    import_checkpoint(source, out, image_token_id=expected["image_token_id"], verify=False)
    kind = model_class("mono" if name == "mono" else "internvl")
    model = kind.from_pretrained(out, dtype=torch.float32)
    inputs = load_file(source / "inputs.safetensors")
    hidden = model.model(
        input_ids=inputs["input_ids"],
        pixel_values=inputs["pixel_values"].float(),
        use_cache=False,
    ).last_hidden_state[0]
    labels = inputs["labels"][0]
    rows = (labels[1:] != -100).nonzero()[:, 0]
    for weights, loss in (
        (torch.tensor(expected["loss_weight_of_supervised_tokens"]), expected["weighted_loss"]),
        (torch.ones(len(rows)), expected["loss"]),
    ):
        total = weighted_cross_entropy(
            hidden[rows], labels[rows + 1], weights, model.lm_head, chunks=3
        )
        assert float(total.detach() / weights.sum()) == pytest.approx(loss, abs=1e-5)
