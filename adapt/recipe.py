"""Recipes: every option of a training run, its default, unit and meaning; YAML holds differences.

    # my.yaml                                      adapt plan my.yaml --set lora.rank=8
    domains: [medical]
    method: lora
    lora: {rank: 32}

Paths in a recipe are relative to the folder a command runs in. The schema of the file,
`schemas/recipe.schema.json`, is made from the classes here: `python -m adapt.recipe`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

from adapt.errors import RecipeError, nearest
from adapt.jsonl import write_json
from adapt.options import is_text, option_types, options_schema, read_options
from adapt.recipe_files import read_source, resolve_recipe_path, shipped_names, shipped_path
from adapt.resources import schema_path

Method = Literal["full", "freeze-vit", "lora", "qlora"]
MonoStage = Literal["concept", "semantic", "alignment", "instruction"]
METHODS: tuple[Method, ...] = get_args(Method)
STAGES: tuple[MonoStage, ...] = get_args(MonoStage)
Count = Annotated[int, Meta(ge=1, le=2**31)]
Share = Annotated[float, Meta(ge=0, lt=1)]

_SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_RATIO = r"^[0-9]+(\.[0-9]+)?:[0-9]+(\.[0-9]+)?$"


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Adapters on the language model, for `method: lora` and `qlora`."""

    rank: Annotated[int, Meta(ge=1, le=4096, description="Rank of the adapters.")] = 16
    alpha: Annotated[
        Count | None, Meta(description="Scale numerator of the adapters; null: twice the rank.")
    ] = None
    dropout: Annotated[Share, Meta(description="Dropout before each adapter.")] = 0.05
    vision: Annotated[
        bool, Meta(description="Adapters in the vision tower (Mono: visual experts) as well.")
    ] = False

    def __post_init__(self) -> None:
        """Fill in `alpha`."""
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.rank)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. See the module docstring."""

    # What is trained on what.
    name: Annotated[
        str,
        Meta(
            pattern=_SAFE_NAME,
            examples=["medical-lora"],
            description="Name of the run; by default the file's.",
        ),
    ]
    description: Annotated[str, Meta(description="One line for adapt recipes list.")] = ""
    domains: Annotated[
        tuple[str, ...], Meta(description="Domains it is for (driving, medical, ...).")
    ] = ()
    model: Annotated[
        str, Meta(min_length=1, description="Preset (adapt models list) or checkpoint folder.")
    ] = "mini-internvl2-2b"
    mix: Annotated[Path, Meta(description="Folder that adapt mix wrote.")] = Path("data/mix")
    out: Annotated[
        Path, Meta(description="Folder of the run; NAME stands for the recipe's name.")
    ] = Path("runs/NAME")
    ratio: Annotated[
        Annotated[str, Meta(pattern=_RATIO)] | None,
        Meta(
            examples=["1:4"],
            description="general:domain of the mix it is meant for; information only.",
        ),
    ] = None

    # Method.
    method: Annotated[Method, Meta(description="Which parameters are trained, and how.")] = "full"
    stage: Annotated[
        MonoStage | None,
        Meta(description="Mono-InternVL only: which parts its training stage unfreezes."),
    ] = None
    lora: Annotated[LoraOptions, Meta(description="Adapters, for lora and qlora.")] = LoraOptions()
    deepspeed: Annotated[
        str,
        Meta(description="zero1, zero2, zero3, zero2-offload, zero3-offload or a JSON file."),
    ] = "zero1"
    dtype: Annotated[
        Literal["bf16", "fp32"], Meta(description="Number format of weights and activations.")
    ] = "bf16"
    activation_checkpointing: Annotated[
        bool, Meta(description="Recompute activations in the backward pass: less memory, slower.")
    ] = True
    drop_path: Annotated[
        Share, Meta(description="Drop path of the last vision layer (linear ramp from 0).")
    ] = 0.1

    # Optimiser (AdamW) and schedule.
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="Peak learning rate.")] = 1e-5
    min_learning_rate: Annotated[
        float, Meta(ge=0, le=1, description="Learning rate at the end of the schedule.")
    ] = 0.0
    schedule: Annotated[
        Literal["cosine", "constant"], Meta(description="Learning rate after the warm-up.")
    ] = "cosine"
    warmup_ratio: Annotated[Share, Meta(description="Share of the steps spent warming up.")] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="Weight decay.")] = 0.01
    betas: Annotated[tuple[Share, Share], Meta(description="Decay of AdamW's two averages.")] = (
        0.9,
        0.999,
    )
    eps: Annotated[float, Meta(gt=0, le=1, description="AdamW's epsilon.")] = 1e-8
    max_grad_norm: Annotated[
        float, Meta(gt=0, le=1e9, description="Gradients are clipped to this norm.")
    ] = 1.0
    loss: Annotated[
        Literal["square", "sample", "token"],
        Meta(description="Weight of each of a record's n supervised tokens: 1/sqrt(n), 1/n, 1."),
    ] = "square"
    loss_chunk_tokens: Annotated[
        Count, Meta(description="Tokens whose logits exist at once (memory against speed).")
    ] = 1024

    # Length.
    epochs: Annotated[Count, Meta(description="Passes over the mix.")] = 1
    max_steps: Annotated[
        Count | None,
        Meta(description="Optimiser steps of the run, in place of epochs; null: all epochs."),
    ] = None
    gradient_accumulation: Annotated[
        Count, Meta(description="Packs for each GPU and optimiser step.")
    ] = 8

    # Data.
    max_record_tokens: Annotated[
        Count, Meta(description="Longest record, in tokens, image tokens included.")
    ] = 8192
    max_pack_tokens: Annotated[int, Meta(ge=1, le=2**18, description="Most tokens in a pack.")] = (
        16384
    )
    max_pack_tiles: Annotated[int, Meta(ge=1, le=2**12, description="Most tiles in a pack.")] = 48
    over_length: Annotated[
        Literal["refuse", "skip"],
        Meta(description="Records over a limit: stop and list them, or leave them out, counted."),
    ] = "refuse"
    max_tiles: Annotated[
        int, Meta(ge=1, le=256, description="Most tiles of a record's images, less thumbnails.")
    ] = 12
    min_tiles: Annotated[int, Meta(ge=1, le=256, description="Fewest tiles of an image.")] = 1
    thumbnail: Annotated[
        bool, Meta(description="Add the whole picture as one more tile when it is cut.")
    ] = True
    jpeg_augmentation: Annotated[
        bool, Meta(description="Training tiles pass through JPEG of quality 75 to 100; not video.")
    ] = True
    max_unreadable: Annotated[
        int, Meta(ge=0, description="Records that may turn out unreadable before the run stops.")
    ] = 0
    data_workers: Annotated[
        int, Meta(ge=0, le=256, description="Loader threads for each GPU; 0: none.")
    ] = 4
    seed: Annotated[
        int, Meta(ge=0, lt=2**32, description="Seed of the packs, their order and the training.")
    ] = 42

    # Records of the run.
    save_every: Annotated[Count, Meta(description="Steps between checkpoints.")] = 700
    keep_checkpoints: Annotated[Count, Meta(description="Checkpoints kept, the newest.")] = 3
    log_every: Annotated[Count, Meta(description="Steps between lines of metrics.jsonl.")] = 1
    tensorboard: Annotated[bool, Meta(description="Write TensorBoard events.")] = True

    def __post_init__(self) -> None:
        """Put the name into `out`."""
        object.__setattr__(self, "out", Path(str(self.out).replace("NAME", self.name)))


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides and check everything.

    Args:
        path: A recipe file; one that does not exist falls back to the shipped recipe of its name.
        overrides: `learning_rate=2e-5`, `lora.rank=8`; values in YAML.

    Raises:
        RecipeError: With every problem of the file and the overrides, one a line.
    """
    source = read_source(resolve_recipe_path(path))
    hints = option_types(Recipe)
    for override in overrides:
        hint = hints.get(override.partition("=")[0].strip())
        source.set(override, is_text=is_text(hint))
    source.data.setdefault("name", source.path.stem)
    values = read_options(Recipe, source, source.data)
    if not source.problems:
        recipe = Recipe(**values)
        source.problems += [f"{source.path}: {conflict}" for conflict in _conflicts(recipe)]
    if source.problems:
        raise RecipeError("\n".join(source.problems))
    return recipe


def recipes_for(domain: str) -> list[str]:
    """Return the names of the shipped recipes that list `domain`.

    >>> recipes_for("medical")
    ['medical']
    """
    names = shipped_names()
    return [name for name in names if domain in load_recipe(shipped_path(name)).domains]


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, made from the dataclasses."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "adapt recipe",
        "description": "What a training run does differently from the defaults.",
        **options_schema(Recipe),
    }


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong between fields that are right each on its own."""
    if recipe.min_tiles > recipe.max_tiles:
        yield f"min_tiles {recipe.min_tiles} is above max_tiles {recipe.max_tiles}; lower it"
    if recipe.min_learning_rate > recipe.learning_rate:
        yield (
            f"min_learning_rate {recipe.min_learning_rate} is above learning_rate "
            f"{recipe.learning_rate}; lower it"
        )
    if recipe.lora != LoraOptions() and recipe.method not in ("lora", "qlora"):
        yield f"lora is set but method is {recipe.method}; set method: lora, or drop lora"
    if recipe.stage and recipe.method != "full":
        yield f"stage {recipe.stage} chooses what is trained; it needs method: full"
    yield from _deepspeed_problems(recipe.deepspeed)


def _deepspeed_problems(name: str) -> Iterator[str]:
    known = shipped_names("deepspeed/*.json")
    if name not in known and not Path(name).is_file():
        yield f"deepspeed is {name!r}: neither a file nor a shipped setting{nearest(name, known)}"


if __name__ == "__main__":
    write_json(schema_path("recipe"), recipe_schema())
