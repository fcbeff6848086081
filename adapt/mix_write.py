"""Write a mix: mix.parquet, then mix.json which names it, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from adapt.errors import UsageError
from adapt.jsonl import atomic_file, path_text, sha256_file, write_bytes
from adapt.mix_draw import Rows
from adapt.mix_index import (
    COLUMNS,
    FORMAT,
    INDEX,
    MANIFEST,
    IndexFile,
    Mix,
    MixFile,
    MixManifest,
    MixSource,
    Share,
    Shares,
    read_mix,
)
from adapt.mix_options import Request, decimal_text
from adapt.mix_sources import SIDES, MixSide
from adapt.one_writer import one_writer


def write_mix(sides: Sequence[MixSide], request: Request, rows: Rows) -> Mix:
    """Write the rows of a mix in their order, and read it back."""
    out = request.out
    columns = _columns(sides, rows)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, expected a folder to write the mix into")
    with one_writer(out / ".lock", busy=None):
        _write_index(out / INDEX, columns)
        index = IndexFile(INDEX, sha256_file(out / INDEX), (out / INDEX).stat().st_size)
        manifest = _manifest(sides, request, rows, index)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        write_bytes(out / MANIFEST, text + b"\n")
        return read_mix(out)


def _columns(sides: Sequence[MixSide], rows: Rows) -> dict[str, NDArray[Any]]:
    """Return the columns of mix.parquet: where each row's line is."""
    columns = {name: np.zeros(len(rows.row), kind) for name, kind in COLUMNS.items()}
    columns["source"][:] = rows.source
    columns["copy"][:] = rows.copy
    for number, side in enumerate(sides):
        held = np.flatnonzero(rows.source == number)
        row = rows.row[held]
        starts = np.cumsum([0] + [len(file.offsets) for file in side.files])
        file_number = np.searchsorted(starts, row, side="right") - 1
        offsets = np.concatenate([file.offsets for file in side.files])
        columns["file"][held] = file_number
        columns["row"][held] = row - starts[file_number]
        columns["offset"][held] = offsets[row]
    return columns


def _write_index(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd", use_dictionary=False)


def _manifest(
    sides: Sequence[MixSide], request: Request, rows: Rows, index: IndexFile
) -> MixManifest:
    sources = [
        _source(side, request, rows.row[rows.source == number]) for number, side in enumerate(sides)
    ]
    counts = {side: sum(one.rows_used for one in sources if one.role == side) for side in SIDES}
    total = sum(counts.values())
    goal = request.goal
    return MixManifest(
        format=FORMAT,
        seed=request.seed,
        ratio=goal.ratio,
        fraction_of_general=None if goal.ratio else decimal_text(goal.general),
        allow_repeat=request.allow_repeat,
        rows=total,
        reached=ratio_text(counts["general"], counts["domain"]),
        shares=Shares(
            **{side: Share(counts[side], round(counts[side] / total, 6)) for side in SIDES}
        ),
        sources=sources,
        index=index,
    )


def _source(side: MixSide, request: Request, used: NDArray[np.int64]) -> MixSource:
    def relative(path: Path) -> str:
        return path_text(os.path.relpath(path.resolve(), request.out.resolve()))

    dataset = side.dataset
    repeat = request.repeat.get(dataset.name)
    return MixSource(
        name=dataset.name,
        role=side.side,
        domain=dataset.domain,
        folder=relative(dataset.folder),
        root=relative(dataset.root),
        take=request.take.get(dataset.name),
        repeat=None if repeat is None else decimal_text(repeat),
        rows_available=side.rows,
        rows_used=len(used),
        rows_distinct=int(np.count_nonzero(np.bincount(used))) if len(used) else 0,
        files=[
            MixFile(relative(file.path), file.sha256, len(file.offsets), file.bytes)
            for file in side.files
        ],
    )


def ratio_text(general: int, domain: int) -> str:
    """Return general:domain with 1 on the smaller side.

    >>> ratio_text(133, 531), ratio_text(531, 133), ratio_text(0, 7)
    ('1:3.99', '3.99:1', '0:1')
    """
    if not general or not domain:
        return f"{min(general, 1)}:{min(domain, 1)}"
    larger = f"{max(general, domain) / min(general, domain):.2f}".rstrip("0").rstrip(".")
    return f"{larger}:1" if general > domain else f"1:{larger}"


def describe(manifest: MixManifest, request: Request) -> list[str]:
    """Return what is said on screen of a mix: both sides, their sources, the ratio reached."""
    shares = {"general": manifest.shares.general, "domain": manifest.shares.domain}
    general, domain = (f"{side} {share.rows}" for side, share in shares.items())
    lines = [f"{general} : {domain} = {manifest.reached} ({request.goal.words()})"]
    for side, share in shares.items():
        held = ", ".join(_source_words(one) for one in manifest.sources if one.role == side)
        lines.append(
            f"  {side} side: {share.rows} rows, {share.share:.1%} of the mix ({held or 'none'})"
        )
    lines.append(f"{manifest.rows} rows in {request.out / INDEX}, seed {manifest.seed}")
    return lines


def _source_words(source: MixSource) -> str:
    words = f"{source.name} {source.rows_used} of {source.rows_available}"
    if source.rows_used > source.rows_distinct:
        words += f", {source.rows_distinct} of them different"
    return words
