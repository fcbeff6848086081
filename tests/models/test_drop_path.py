"""Drop path in the vision tower: rates, statistics, when it is off, what it leaves alone."""

import copy

import pytest
import torch
from transformers import InternVLVisionConfig, InternVLVisionModel

from adapt.errors import RecipeError
from adapt.models.drop_path import DropPath, inject_drop_path


def make_tower(layers: int = 3) -> InternVLVisionModel:
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=28,
        patch_size=14,
    )
    return InternVLVisionModel(config)


def branch_rates(tower: InternVLVisionModel) -> list[tuple[float, float]]:
    """Return the rates on attention and MLP of each layer, 0 where no hook is."""

    def rate(module: torch.nn.Module) -> float:
        hooks = [hook for hook in module._forward_hooks.values() if isinstance(hook, DropPath)]
        assert len(hooks) <= 1
        return hooks[0].rate if hooks else 0.0

    return [(rate(layer.attention), rate(layer.mlp)) for layer in tower.encoder.layer]


def test_rates_rise_linearly_from_zero_to_the_rate_on_both_branches():
    tower = make_tower(layers=5)
    rates = inject_drop_path(tower, 0.1)
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert branch_rates(tower) == [(rate, rate) for rate in rates]


def test_a_second_call_replaces_and_zero_removes():
    tower = make_tower()
    inject_drop_path(tower, 0.4)
    inject_drop_path(tower, 0.2)
    assert branch_rates(tower) == [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2)]
    assert inject_drop_path(tower, 0.0) == [0.0, 0.0, 0.0]
    assert branch_rates(tower) == [(0.0, 0.0)] * 3


@pytest.mark.parametrize("rate", [-0.1, 1.0, 7.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(RecipeError, match=r"drop path rate is .*, expected 0 <= rate < 1"):
        inject_drop_path(make_tower(), rate)


def test_a_model_without_a_tower_is_left_alone():
    assert inject_drop_path(torch.nn.Linear(2, 2), 0.1) == []


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_tiles_are_dropped_whole_at_the_rate_and_the_rest_is_scaled(rate):
    torch.manual_seed(1)
    tiles = 20_000
    branch = torch.nn.Linear(3, 3)
    output = DropPath(rate)(branch, (), torch.ones(tiles, 2, 3))
    per_tile = output.flatten(1)
    assert torch.equal(per_tile.min(1).values, per_tile.max(1).values)
    values = per_tile[:, 0].unique().tolist()
    assert values == pytest.approx([0.0, 1 / (1 - rate)])
    dropped = (per_tile[:, 0] == 0).double().mean().item()
    # Five standard deviations of a binomial share.
    assert abs(dropped - rate) < 5 * (rate * (1 - rate) / tiles) ** 0.5
    assert output.mean().item() == pytest.approx(1.0, abs=0.1)


def test_attention_weights_pass_through_a_tuple():
    weights = torch.ones(4, 1)
    output = DropPath(0.5)(torch.nn.Linear(1, 1), (), (torch.ones(4, 2, 2), weights))
    assert output[1] is weights
    assert set(output[0].unique().tolist()) <= {0.0, 2.0}


def test_each_tile_of_a_layer_is_one_of_its_four_outcomes():
    """Both branches kept, either dropped, both dropped: nothing else, and all of them occur."""
    tower = make_tower(layers=2).train()
    inject_drop_path(tower, 0.5)
    layer = tower.encoder.layer[1]
    torch.manual_seed(3)
    tile = torch.randn(1, 5, 8)
    tiles = tile.repeat(64, 1, 1)

    def outcome(attention: float, mlp: float) -> torch.Tensor:
        middle = (
            tile
            + attention * layer.lambda_1 * layer.eval().attention(layer.layernorm_before(tile))[0]
        )
        return middle + mlp * layer.lambda_2 * layer.mlp(layer.layernorm_after(middle))

    possible = torch.cat([outcome(a, m) for a in (0.0, 2.0) for m in (0.0, 2.0)])
    layer.train()
    distance = (layer(tiles)[:, None] - possible[None]).abs().amax((2, 3))
    assert distance.min(1).values.max().item() < 1e-6
    assert set(distance.argmin(1).tolist()) == {0, 1, 2, 3}


def test_off_in_eval_mode():
    tower = make_tower()
    pixels = torch.randn(6, 3, 28, 28)
    expected = tower.eval()(pixels).last_hidden_state
    inject_drop_path(tower, 0.9)
    assert torch.equal(tower.eval()(pixels).last_hidden_state, expected)
    assert not torch.equal(tower.train()(pixels).last_hidden_state, expected)


def test_off_in_a_frozen_tower_even_in_training_mode():
    tower = make_tower()
    pixels = torch.randn(6, 3, 28, 28)
    expected = tower.eval()(pixels).last_hidden_state
    inject_drop_path(tower, 0.9)
    tower.requires_grad_(False)
    assert torch.equal(tower.train()(pixels).last_hidden_state, expected)


def test_state_dict_and_parameters_stay_as_they_were():
    tower = make_tower()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    parameters = [name for name, _ in tower.named_parameters()]
    inject_drop_path(tower, 0.3)
    after = tower.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in tower.named_parameters()] == parameters


def test_a_copy_keeps_its_drop_path():
    tower = make_tower()
    inject_drop_path(tower, 0.2)
    assert branch_rates(copy.deepcopy(tower)) == [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2)]


def gradients(
    tower: InternVLVisionModel, pixels: torch.Tensor, seed: int
) -> dict[str, torch.Tensor]:
    tower.zero_grad()
    torch.manual_seed(seed)
    tower(pixels).last_hidden_state.square().sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in tower.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients_with_the_same_seed(reentrant):
    tower = make_tower().train()
    inject_drop_path(tower, 0.8)
    pixels = torch.randn(5, 3, 28, 28)
    plain = gradients(tower, pixels, seed=11)
    other = gradients(tower, pixels, seed=12)
    tower.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients(tower, pixels, seed=11)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
