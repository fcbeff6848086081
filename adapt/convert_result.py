"""What a split becomes when all its parts are done: SPLIT.jsonl, skipped.jsonl, dataset.json.

part files --in order--> SPLIT.jsonl, skipped.jsonl --> dataset.json, last
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from adapt.convert_part import Outcome, SkipEntry, read_outcome
from adapt.convert_state import read_skips
from adapt.converter import Converter
from adapt.dataset import FORMAT, MANIFEST, SKIPPED, read_manifest
from adapt.errors import SourceError
from adapt.jsonl import atomic_file, path_text, write_json, write_lines
from adapt.ledger import Ledger

PartFile = tuple[Path, str]
"""Where a part's outcome lies, and the part's name."""


class _Id(msgspec.Struct):
    id: str


_ID = msgspec.json.Decoder(_Id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """The files of a split.

    Args:
        converter: What made it.
        raw: Raw folder.
        out: Dataset folder.
        split: Its name.
        options: The converter's own options.
    """

    converter: Converter
    raw: Path
    out: Path
    split: str
    options: Mapping[str, object]

    def write(self, parts: Sequence[PartFile], ledger: Ledger, made_by: dict[str, Any]) -> None:
        """Join the parts and write everything, dataset.json last.

        Args:
            parts: In their order.
            ledger: The sums over all parts.
            made_by: What decided the records.

        Raises:
            SourceError: A part file was changed meanwhile.
        """
        # Pictures were written without waiting for the disk: once for all of them, here.
        os.sync()
        target = self.out / f"{self.split}.jsonl"
        digest, size = hashlib.sha256(), 0
        ids: set[str] = set()
        kinds: set[str] = set()
        with atomic_file(target) as file:
            for part in parts:
                outcome = _outcome(part)
                self._check_ids(outcome, ids)
                kinds.add(outcome.images)
                file.write(outcome.body)
                digest.update(outcome.body)
                size += len(outcome.body)
        kinds.discard("")
        if len(kinds) > 1:
            raise RuntimeError(f"converter {self.converter.name} mixes raw and made pictures")
        images = kinds.pop() if kinds else "none"
        self.write_skipped(parts)
        self._write_manifest(
            {
                "made_by": made_by,
                "images": images,
                "files": [
                    {
                        "path": target.name,
                        "records": ledger.records,
                        "bytes": size,
                        "sha256": digest.hexdigest(),
                    }
                ],
                "ledger": ledger.as_dict(),
            }
        )

    def write_skipped(self, parts: Sequence[PartFile]) -> None:
        """Replace this split's lines of skipped.jsonl, keep those of the others."""
        path = self.out / SKIPPED
        order = {split: index for index, split in enumerate(self.converter.module.SPLITS)}
        entries: list[SkipEntry] = []
        if path.exists() and path.stat().st_size:
            entries = [entry for entry in read_skips(path) if entry.split != self.split]
        for part in parts:
            entries.extend(_outcome(part).skips)
        entries.sort(key=lambda entry: order.get(entry.split, len(order)))
        write_lines(path, entries)

    def _check_ids(self, outcome: Outcome, ids: set[str]) -> None:
        for line in outcome.body.splitlines():
            identifier = _ID.decode(line).id
            if identifier in ids:
                raise RuntimeError(
                    f"converter {self.converter.name} yields the id {identifier} twice "
                    f"({outcome.name}); ids must be unique"
                )
            ids.add(identifier)

    def _write_manifest(self, entry: dict[str, Any]) -> None:
        converter = self.converter
        before = read_manifest(self.out)
        splits = {**(before["splits"] if before else {}), self.split: entry}
        root = "."
        if entry["images"] == "raw":
            folder = converter.image_root(self.raw, self.options)
            root = path_text(os.path.relpath(folder, self.out))
        write_json(
            self.out / MANIFEST,
            {
                "format": FORMAT,
                "name": converter.name,
                "converter": {"name": converter.name, "version": converter.version},
                "role": converter.role,
                "domain": converter.domain,
                "root": root,
                "licence": converter.declared("LICENCE"),
                "source": converter.declared("SOURCE"),
                "coordinates": converter.declared("COORDINATES"),
                "splits": {
                    split: splits[split] for split in converter.module.SPLITS if split in splits
                },
            },
        )


def _outcome(part: PartFile) -> Outcome:
    path, name = part
    outcome = read_outcome(path, name)
    if outcome is None:
        raise SourceError(f"{path}: was changed while converting; run the same command again")
    return outcome
