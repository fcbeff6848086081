"""Steps, warm-up and learning rates."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from adapt.recipe import Recipe
from adapt.train.schedule import Schedule, make_schedule


def test_steps_and_warm_up_of_a_recipe() -> None:
    recipe = Recipe(
        name="r", epochs=2, gradient_accumulation=4, learning_rate=1e-3, warmup_ratio=0.1
    )
    assert make_schedule(recipe, num_packs=50, world_size=2) == Schedule(
        num_packs=50,
        packs_per_step=8,
        total_steps=14,
        warmup_steps=2,
        peak=1e-3,
        floor=0.0,
        decay=True,
    )


def test_max_steps_wins_over_epochs() -> None:
    recipe = Recipe(name="r", epochs=1, max_steps=100, schedule="constant")
    schedule = make_schedule(recipe, num_packs=8, world_size=1)
    assert (schedule.total_steps, schedule.steps_per_epoch) == (100, 1)
    assert schedule.places(7) == (7, range(8))


def test_learning_rates() -> None:
    schedule = Schedule(
        num_packs=8,
        packs_per_step=1,
        total_steps=8,
        warmup_steps=4,
        peak=1.0,
        floor=0.2,
        decay=True,
    )
    rates = [schedule.learning_rate(step) for step in range(9)]
    # Half a cosine from 1 to 0.2 in four steps: (1 + cos) / 2 at 0, 45, 90, 135 and 180 degrees.
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.88284, 0.6, 0.31716, 0.2], abs=1e-5)


def test_a_constant_rate_stays() -> None:
    schedule = Schedule(
        num_packs=8,
        packs_per_step=1,
        total_steps=6,
        warmup_steps=2,
        peak=3.0,
        floor=0.0,
        decay=False,
    )
    assert [schedule.learning_rate(step) for step in range(6)] == [1.5, 3, 3, 3, 3, 3]


@given(num_packs=st.integers(1, 60), packs_per_step=st.integers(1, 17), epochs=st.integers(1, 3))
def test_every_epoch_runs_every_pack_once(num_packs: int, packs_per_step: int, epochs: int) -> None:
    schedule = Schedule(
        num_packs=num_packs,
        packs_per_step=packs_per_step,
        total_steps=epochs * -(-num_packs // packs_per_step),
        warmup_steps=0,
        peak=1.0,
        floor=0.0,
        decay=True,
    )
    seen: dict[int, list[int]] = {}
    for step in range(schedule.total_steps):
        epoch, places = schedule.places(step)
        assert 0 < len(places) <= packs_per_step
        seen.setdefault(epoch, []).extend(places)
    assert seen == {epoch: list(range(num_packs)) for epoch in range(epochs)}
