"""What `adapt plan` prints: sizes, packs, steps, memory and time, and what could be better."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.estimate import (
    CONTEXT_BYTES,
    Memory,
    Shape,
    estimate_memory,
    pack_operations,
    read_shape,
)
from adapt.packing import Integers, Limits, least_packs
from adapt.plan import Plan
from adapt.recipe import METHODS, Recipe, recipes_for
from adapt.recipe_files import shipped_names

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.handle import ModelHandle

_BAR = 40
_BINS = 12
_WELL_FILLED = 0.9
_GIB = 2**30


def domain_notice(recipe: Recipe, mix: Mix) -> str | None:
    """Return a line when the mix holds a domain the recipe is not for, naming those that fit."""
    found = {source.domain for source in mix.manifest.sources if source.role == "domain"}
    others = sorted(domain for domain in found if domain and domain not in recipe.domains)
    if not others or not recipe.domains:
        return None
    fitting = {domain: recipes_for(domain) for domain in others}
    named = "; ".join(
        f"for {domain}: {', '.join(names) or 'none is shipped'}"
        for domain, names in fitting.items()
    )
    return (
        f"note: the mix holds {', '.join(others)}, recipe {recipe.name} is for "
        f"{', '.join(recipe.domains)}; recipes {named}. Going on with {recipe.name}."
    )


def report_plan(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Yield the lines about records, packs and steps."""
    tokens, tiles = plan.pack_sums("tokens"), plan.pack_sums("tiles")
    supervised = int(plan.pack_sums("supervised").sum())
    yield f"records     {plan.num_records:,} in packs, {plan.num_left_out:,} left out"
    for limit, count in plan.about["left_out"].items():
        yield f"            {count:,} {limit}"
    total = int(tokens.sum())
    yield f"tokens      {total:,}, {supervised:,} of them learned ({_percent(supervised, total)})"
    yield f"tiles       {int(tiles.sum()):,}"
    yield from _histogram(plan.column("tokens"))
    limits = Limits(recipe.max_pack_tokens, recipe.max_pack_tiles)
    yield (
        f"packs       {plan.num_packs:,} of at most {limits.tokens:,} tokens and "
        f"{limits.tiles:,} tiles; no packing needs fewer than "
        f"{least_packs(plan.column('tokens'), plan.column('tiles'), limits):,}"
    )
    yield (
        f"fill        {_percent(total, plan.num_packs * limits.tokens)} of the tokens, "
        f"{_percent(int(tiles.sum()), plan.num_packs * limits.tiles)} of the tiles"
    )
    yield from _better_limits(plan, limits)
    yield f"hash        {plan.hash}"
    yield ""
    packs = (
        "1 pack" if recipe.gradient_accumulation == 1 else f"{recipe.gradient_accumulation} packs"
    )
    yield f"steps an epoch, {packs} for each GPU and step"
    counts = (1, 2, 4, 8, 16, 32)
    yield "  GPUs   " + "".join(f"{gpus:>10,}" for gpus in counts)
    steps = [
        plan.steps_per_epoch(world_size=gpus, accumulation=recipe.gradient_accumulation)
        for gpus in counts
    ]
    yield "  steps  " + "".join(f"{step:>10,}" for step in steps)


def report_costs(
    plan: Plan, recipe: Recipe, handle: ModelHandle, *, gpus: int, tflops: float
) -> Iterator[str]:
    """Yield the lines about memory and time; both are estimates and say so."""
    shape = read_shape(handle, recipe)
    yield ""
    yield from _memory_lines(plan, recipe, shape, gpus)
    yield ""
    yield from _time_lines(plan, recipe, shape, gpus, tflops)


def _histogram(sizes: Integers) -> Iterator[str]:
    """Yield a bar for each range of record lengths, the longest records' range last."""
    if not len(sizes):
        return
    width = max(1, -(-int(sizes.max()) // _BINS))
    # Round widths read better: 300 rather than 287.
    unit = 10 ** max(0, len(str(width)) - 2)
    width = -(-width // unit) * unit
    counts = np.bincount((np.asarray(sizes) - 1) // width)
    yield "length      records, by tokens"
    for place, count in enumerate(counts.tolist()):
        bar = "#" * round(_BAR * count / counts.max()) or ("." if count else "")
        yield f"  {place * width + 1:>7,} to {(place + 1) * width:>7,}  {count:>9,}  {bar}".rstrip()


def _better_limits(plan: Plan, limits: Limits) -> Iterator[str]:
    """Yield a hint when tiles keep the packs from being filled with tokens."""
    tokens, tiles = plan.column("tokens"), plan.column("tiles")
    total = int(tokens.sum(dtype=np.int64))
    if not plan.num_packs or total >= _WELL_FILLED * plan.num_packs * limits.tokens:
        return
    wider = min(-(-limits.tokens * int(tiles.sum(dtype=np.int64)) // total), 2 * limits.tiles)
    if wider <= limits.tiles:
        return
    fewer = least_packs(tokens, tiles, Limits(limits.tokens, wider))
    if fewer < 0.95 * plan.num_packs:
        yield (
            f"            tiles are what fills a pack: --set max_pack_tiles={wider} could do with "
            f"{fewer:,} packs ({_percent(total, fewer * limits.tokens)}), for more memory"
        )


def _memory_lines(plan: Plan, recipe: Recipe, shape: Shape, gpus: int) -> Iterator[str]:
    tokens = int(plan.pack_sums("tokens").max(initial=0))
    tiles = int(plan.pack_sums("tiles").max(initial=0))
    settings = {name: _zero_settings(recipe, name, shape) for name in _all_settings(recipe)}
    own = estimate_memory(
        shape, recipe, settings[recipe.deepspeed], gpus=gpus, tokens=tokens, tiles=tiles
    )
    yield (
        f"memory      {_gib(own.peak)} GiB on each of {gpus} GPUs for {recipe.method}, "
        f"{recipe.deepspeed}, {recipe.dtype}; an estimate for a pack of {tokens:,} tokens and "
        f"{tiles:,} tiles"
    )
    yield "            in GiB: " + ", ".join(f"{name} {_gib(size)}" for name, size in _parts(own))
    names = list(settings)
    yield "  GiB a GPU   " + "".join(f"{name:>15}" for name in names)
    for method in (method for method in METHODS if method in shape.trained):
        other = dataclasses.replace(recipe, method=method)
        cells = (
            estimate_memory(shape, other, settings[name], gpus=gpus, tokens=tokens, tiles=tiles)
            for name in names
        )
        yield f"  {method:<12}" + "".join(f"{_gib(cell.peak):>15}" for cell in cells)


def _parts(memory: Memory) -> list[tuple[str, int]]:
    parts = [(field.name, getattr(memory, field.name)) for field in dataclasses.fields(memory)]
    named = [(name.replace("on_cpu", "in the machine's memory"), size) for name, size in parts]
    # The machine's memory is no part of the sum.
    named.insert(-1, ("context", CONTEXT_BYTES))
    return [(name, size) for name, size in named if size]


def _all_settings(recipe: Recipe) -> list[str]:
    names = shipped_names("deepspeed/*.json")
    return names if recipe.deepspeed in names else [*names, recipe.deepspeed]


def _zero_settings(recipe: Recipe, name: str, shape: Shape) -> Mapping[str, Any]:
    from adapt.train.optimizer import deepspeed_config

    other = dataclasses.replace(recipe, deepspeed=name)
    config = deepspeed_config(other, trained=shape.trained[recipe.method])
    zero: Mapping[str, Any] = config["zero_optimization"]
    return zero


def _time_lines(
    plan: Plan, recipe: Recipe, shape: Shape, gpus: int, tflops: float
) -> Iterator[str]:
    if not plan.num_packs:
        return
    lengths = plan.column("tokens").astype(np.float64)
    packs = plan.num_packs
    operations = pack_operations(
        shape,
        recipe,
        tokens=float(lengths.sum()) / packs,
        squares=float((lengths**2).sum()) / packs,
        supervised=float(plan.column("supervised").sum(dtype=np.int64)) / packs,
        tiles=float(plan.column("tiles").sum(dtype=np.int64)) / packs,
    )
    steps = plan.steps_per_epoch(world_size=gpus, accumulation=recipe.gradient_accumulation)
    step_s = recipe.gradient_accumulation * operations / (tflops * 1e12)
    yield (
        f"time        {_duration(steps * step_s)} an epoch on {gpus} GPUs, "
        f"{_duration(step_s)} a step; an estimate: {operations / 1e12:,.3g} TFLOP a pack at an "
        f"assumed {tflops:g} TFLOP/s sustained by a GPU (--tflops)"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}" if size >= _GIB / 20 else f"{size / _GIB:.2g}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
