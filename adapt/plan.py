"""The plan: which records of a mix share a pack, found before training from sizes alone.

    plan.parquet, one row a record of the mix, in the order of packs and slots

        pack  slot  mix_index  tokens  tiles  supervised
           0     0       1207    3534     13          14
           0     1         88    3610     13          52
          -1    -1       4711   20480     40         300     left out: over_length: skip

Everything else (limits, model, mix, counts, hash) is JSON in the file's metadata. The plan is the
same for any number of GPUs; a place in the data is (hash of the plan, epoch, pack).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from adapt.errors import SourceError, UsageError
from adapt.jsonl import atomic_file
from adapt.mix_draw import shuffled
from adapt.packing import Integers, Limits, pack_records
from adapt.recipe import Recipe, load_recipe
from adapt.run_paths import RunFolder

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.handle import ModelHandle
    from adapt.plan_sizes import RecordSizes

FILE = "plan.parquet"
FORMAT = 1
_METADATA_KEY = b"adapt.plan"
_COLUMNS = {
    "pack": "int32",
    "slot": "int16",
    "mix_index": "int64",
    "tokens": "int32",
    "tiles": "int16",
    "supervised": "int32",
}
LEFT_OUT = -1


@dataclass(frozen=True, slots=True)
class PlannedRecord:
    """A record in a pack.

    Args:
        mix_index: Its row of the mix.
        tokens: Tokens, image tokens included.
        tiles: Tiles of all its images, thumbnails included.
        supervised: Tokens that are learned.
    """

    mix_index: int
    tokens: int
    tiles: int
    supervised: int


@dataclass(frozen=True)
class Plan:
    """Packs of records; see the module docstring.

    Args:
        columns: The columns of plan.parquet, [rows of the mix] each, those left out last.
        about: Format, limits, tiling, seed, model and mix.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, Any]

    @cached_property
    def hash(self) -> str:
        """Sha256 of everything that decides what a place in the data means."""
        digest = hashlib.sha256(orjson.dumps(_deciding(self.about), option=orjson.OPT_SORT_KEYS))
        for name, kind in _COLUMNS.items():
            little_endian = np.dtype(kind).newbyteorder("<")
            digest.update(self.columns[name].astype(little_endian, copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def num_records(self) -> int:
        """Records in packs."""
        return int(np.count_nonzero(self.columns["pack"] != LEFT_OUT))

    @property
    def num_left_out(self) -> int:
        """Records of the mix that are over a limit and left out."""
        return len(self.columns["pack"]) - self.num_records

    @cached_property
    def _starts(self) -> Integers:
        """[packs + 1] first row of each pack."""
        packs = self.columns["pack"][: self.num_records]
        return np.append(np.flatnonzero(np.diff(packs, prepend=-1)), len(packs))

    @property
    def num_packs(self) -> int:
        """Packs of an epoch."""
        return len(self._starts) - 1

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return [records in packs] a column, in the order of packs and slots."""
        return self.columns[name][: self.num_records]

    def pack_sums(self, name: str) -> Integers:
        """Return [packs] the sum of a column (`tokens`, `tiles`, `supervised`) over each pack."""
        if not self.num_packs:
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(self.column(name).astype(np.int64), self._starts[:-1])

    def pack(self, index: int) -> list[PlannedRecord]:
        """Return the records of a pack, in the order they stand in it."""
        if not 0 <= index < self.num_packs:
            raise IndexError(f"pack {index} of {self.num_packs}")
        rows = slice(self._starts[index], self._starts[index + 1])
        names = ("mix_index", "tokens", "tiles", "supervised")
        values = (self.columns[name][rows].tolist() for name in names)
        return [PlannedRecord(*row) for row in zip(*values, strict=True)]

    def order(self, epoch: int) -> Integers:
        """Return [packs] the order in which an epoch, from 0, goes through the packs."""
        return shuffled(self.num_packs, seed=self.about["seed"], purpose=f"epoch {epoch}")

    def steps_per_epoch(self, *, world_size: int, accumulation: int) -> int:
        """Return the optimiser steps of an epoch; the last may lack packs."""
        return -(-self.num_packs // (world_size * accumulation))

    def save(self, folder: Path) -> Path:
        """Write plan.parquet into `folder` and return its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = orjson.dumps({**self.about, "hash": self.hash})
        table = pa.table(
            {name: pa.array(self.columns[name], type=kind) for name, kind in _COLUMNS.items()},
            metadata={_METADATA_KEY: about},
        )
        with atomic_file(folder / FILE) as file:
            pq.write_table(table, file, compression="zstd")
        return folder / FILE


def load_plan(folder: Path) -> Plan:
    """Read plan.parquet of a folder.

    Raises:
        SourceError: There is none, or it is damaged or of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / FILE
    if not path.is_file():
        raise SourceError(f"{path}: no such plan; adapt plan RECIPE --out {folder} writes it")
    try:
        table = pq.read_table(path)
        about = orjson.loads(table.schema.metadata[_METADATA_KEY])
        columns = {
            name: table[name].to_numpy().astype(kind, copy=False) for name, kind in _COLUMNS.items()
        }
    except (pa.ArrowException, OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise SourceError(f"{path}: not a plan of adapt ({error}); plan again") from error
    if about.get("format") != FORMAT:
        raise SourceError(
            f"{path}: format {about.get('format')}, this version reads {FORMAT}; plan again"
        )
    stored = about.pop("hash", None)
    plan = Plan(columns, about)
    if plan.hash != stored:
        raise SourceError(f"{path}: its contents are not what its hash says; plan again")
    return plan


def build_plan(recipe: Recipe, handle: ModelHandle, mix: Mix | None = None) -> Plan:
    """Count the tokens and tiles of every record of the recipe's mix, and pack them.

    Args:
        recipe: Names the mix, and sets the limits.
        handle: Counts the tokens.
        mix: The recipe's mix, where it has been read.

    Raises:
        RecordError: Records cannot be trained on: no answer, no size, or over a limit
            (unless the recipe leaves those out).
    """
    from adapt.mix import read_mix
    from adapt.plan_sizes import measure_mix

    mix = mix or read_mix(recipe.mix)
    sizes = measure_mix(mix, recipe, handle)
    about = {
        "format": FORMAT,
        "seed": recipe.seed,
        "limits": {
            "record_tokens": recipe.max_record_tokens,
            "pack_tokens": recipe.max_pack_tokens,
            "pack_tiles": recipe.max_pack_tiles,
        },
        "tiling": {
            "tile_px": handle.tile_px,
            "tokens_per_tile": handle.tokens_per_tile,
            "min_tiles": recipe.min_tiles,
            "max_tiles": recipe.max_tiles,
            "thumbnail": recipe.thumbnail,
        },
        "mix": mix_digest(mix),
        "template": handle.template.name,
        "made_for": {"recipe": recipe.name, "model": handle.name},
        "left_out": dict(sizes.over),
    }
    return arrange(sizes, about, rope_switch=handle.rope_switch)


def arrange(sizes: RecordSizes, about: Mapping[str, Any], *, rope_switch: int | None) -> Plan:
    """Pack measured records.

    Args:
        sizes: Of every row of the mix.
        about: See `Plan`.
        rope_switch: Records longer than this never share a pack with others (Phi-3's long rope
            turns on the longest record of a row); None: no such rule.
    """
    fitting = np.flatnonzero(sizes.fits)
    limits = Limits(about["limits"]["pack_tokens"], about["limits"]["pack_tiles"])
    long = sizes.tokens[fitting] > rope_switch if rope_switch else None
    packing = pack_records(
        sizes.tokens[fitting], sizes.tiles[fitting], limits, seed=about["seed"], groups=long
    )
    packs = np.full(len(sizes.tokens), LEFT_OUT, dtype=np.int64)
    slots = np.full(len(sizes.tokens), LEFT_OUT, dtype=np.int64)
    packs[fitting], slots[fitting] = packing.packs, packing.slots
    indexes = np.arange(len(packs))
    rows = np.lexsort((indexes, slots, packs, packs == LEFT_OUT))
    values = (packs, slots, indexes, sizes.tokens, sizes.tiles, sizes.supervised)
    columns = {
        name: column[rows].astype(kind)
        for (name, kind), column in zip(_COLUMNS.items(), values, strict=True)
    }
    return Plan(columns, about)


def run_plan(
    recipe_path: Path,
    overrides: tuple[str, ...],
    *,
    out: Path | None = None,
    gpus: int = 8,
    tflops: float = 125.0,
) -> Plan:
    """Plan a recipe, print what comes of it, and write plan.parquet.

    Args:
        recipe_path: A recipe file, or a shipped recipe's name.
        overrides: `key=value`.
        out: Folder of plan.parquet; by default `plan` in the run's folder.
        gpus: GPUs that memory and time are estimated for.
        tflops: TFLOP/s that a GPU is assumed to sustain.

    Raises:
        UsageError: The run has begun with another plan.
        AdaptError: What `load_recipe`, `open_model` and `build_plan` raise.
    """
    from adapt.mix import read_mix
    from adapt.models.handle import open_model
    from adapt.plan_report import domain_notice, report_costs, report_plan

    recipe = load_recipe(recipe_path, overrides)
    mix = read_mix(recipe.mix)
    mix.verify()
    if notice := domain_notice(recipe, mix):
        print(notice)
    handle = open_model(recipe.model)
    plan = build_plan(recipe, handle, mix)
    for line in report_plan(plan, recipe):
        print(line)
    for line in report_costs(plan, recipe, handle, gpus=gpus, tflops=tflops):
        print(line)
    folder = out or recipe.out / "plan"
    _keep_plan_of_run(folder, plan)
    print(f"written to {plan.save(folder)}")
    return plan


def _keep_plan_of_run(folder: Path, plan: Plan) -> None:
    """Refuse to replace the plan of a run that has begun: it could never be resumed."""
    run = RunFolder(folder.parent)
    if folder != run.plan or not run.has_begun or not (folder / FILE).exists():
        return
    try:
        before = load_plan(folder).hash
    except SourceError:
        # Damaged: what was planned is gone already.
        return
    if before != plan.hash:
        raise UsageError(
            f"{folder / FILE}: is the plan of a run that has begun, and another than this one; "
            f"not written: --out FOLDER writes this one elsewhere"
        )


def mix_digest(mix: Mix) -> str:
    """Return a sha256 of what a mix holds: its index and its records files, wherever they lie."""
    files = [file.sha256 for source in mix.manifest.sources for file in source.files]
    return hashlib.sha256("\n".join([mix.manifest.index.sha256, *files]).encode()).hexdigest()


def _deciding(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of `about` decides the data, which a name does not."""
    return {key: value for key, value in about.items() if key not in ("made_for", "left_out")}
