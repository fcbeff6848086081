"""Run a converter: workers, resume, ledger, progress.

    raw folder --parts--> workers --part files--> SPLIT.jsonl, skipped.jsonl, dataset.json

Each part's outcome lies in OUT/.adapt/SPLIT until the split is whole, so that a run killed at any
moment goes on where it was, and the result has the same bytes for any number of workers and
interruptions. The part files are joined in order, then dataset.json is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from adapt.convert_part import (
    Job,
    SizeCache,
    Task,
    do_task,
    group_results,
    has_pictures,
    part_file,
    read_outcome,
)
from adapt.convert_result import PartFile, SplitResult
from adapt.convert_state import STATE, differences, locked, read_unfinished
from adapt.converter import Converter
from adapt.dataset import MANIFEST, SKIPPED, read_manifest
from adapt.errors import RecordError, SourceError, TooManySkips, UsageError, nearest
from adapt.jsonl import (
    path_text,
    read_lines,
    sha256_file,
    sha256_listing,
    write_json,
)
from adapt.ledger import Ledger
from adapt.problems import schema_problems
from adapt.progress import progress
from adapt.workers import cpu_count, map_unordered


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What `adapt convert NAME` was asked to do.

    Args:
        converter: The converter.
        raw: Raw folder; None is data/raw/NAME.
        out: Dataset folder; None is data/ROLE/NAME.
        splits: Splits to convert; empty is every split present.
        options: The converter's own options.
        workers: Worker processes; None is one a core.
        limit: Raw units to take of each split at most.
        max_skips: Raw units that may be lost in each split.
        overwrite: Replace what other options or inputs made.
    """

    converter: Converter
    raw: Path | None = None
    out: Path | None = None
    splits: tuple[str, ...] = ()
    options: Mapping[str, object] | None = None
    workers: int | None = None
    limit: int | None = None
    max_skips: int = 0
    overwrite: bool = False


_LARGEST_NUMBER = 2**63 - 1


def run_conversion(asked: ConvertOptions) -> None:
    """Convert the splits asked for and print their ledgers.

    Raises:
        SourceError: Raw files are missing or malformed.
        UsageError: An unknown split, or another conversion lies in the output folder.
        TooManySkips: More raw units were lost than allowed.
    """
    converter = asked.converter
    raw = _raw_folder(converter, asked.raw)
    out = asked.out or Path("data") / converter.role / converter.name
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, expected a folder to write the dataset into")
    options = dict(asked.options or {})
    for split in asked.splits:
        if split not in converter.module.SPLITS:
            raise UsageError(
                f"{converter.name} has no split {split}{nearest(split, converter.module.SPLITS)}"
            )
    for name, value in {"limit": asked.limit, **options}.items():
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}, expected at most {_LARGEST_NUMBER}"
            )
    splits = list(asked.splits) or converter.splits(raw, options)
    with locked(out):
        for split in splits:
            _Split(asked, raw, out, split, options).run()


def _raw_folder(converter: Converter, raw: Path | None) -> Path:
    folder = raw or Path("data") / "raw" / converter.name
    if folder.is_dir():
        return folder
    found = "is a file" if folder.exists() else "no such folder"
    raise SourceError(
        f"{folder}: {found}; {converter.expected()}; put them there, or "
        f"name their folder: adapt convert {converter.name} RAW"
    )


class _Split:
    """The conversion of one split."""

    def __init__(
        self, asked: ConvertOptions, raw: Path, out: Path, split: str, options: dict[str, object]
    ) -> None:
        self._asked, self._raw, self._out, self._split = asked, raw, out, split
        self._options = options
        self._converter = asked.converter
        self._state = out / STATE / split
        self._job_file = out / STATE / f"{split}.json"
        self._result = SplitResult(
            converter=asked.converter, raw=raw, out=out, split=split, options=options
        )

    def run(self) -> None:
        """Do the split, or what is left of it."""
        made_by = self._made_by()
        manifest = self._manifest()
        if manifest is not None and not self._asked.overwrite:
            if (name := manifest["converter"]["name"]) != self._converter.name:
                raise UsageError(
                    f"{self._out}: holds a dataset of {name}; give another --out or --overwrite"
                )
            entry = manifest["splits"].get(self._split)
            if entry is not None and self._is_done(entry, made_by):
                records = entry["ledger"]["records"]
                self._say(f"nothing to do: {records} records of the same input and options")
                self._drop_state()
                return
        self._refuse_strangers(manifest)
        # Read the parts first: a raw file that stops the run here leaves no state behind.
        total, tasks = self._tasks()
        for notice in self._converter.notices(self._raw, self._split, self._options):
            self._say(notice)
        keep_pictures = self._start(made_by, manifest)
        ledger, outcomes = self._do_parts(keep_pictures, total, tasks)
        self._check(ledger, outcomes)
        self._result.write(outcomes, ledger, made_by)
        self._drop_state()
        for line in ledger.lines():
            self._say(line)

    def _manifest(self) -> dict[str, Any] | None:
        """Return dataset.json, which must be as the schema asks for before it is relied on."""
        manifest = read_manifest(self._out)
        for problem in [] if manifest is None else schema_problems(manifest, "dataset"):
            raise RecordError(
                f"{self._out / MANIFEST}: {problem}; remove it and convert the dataset again "
                f"with --overwrite"
            )
        return manifest

    def _refuse_strangers(self, manifest: dict[str, Any] | None) -> None:
        """Refuse to replace a raw file, or records that no conversion here has made."""
        target = self._out / f"{self._split}.jsonl"
        sources = self._converter.sources(self._raw, self._split, self._options)
        for path in (target, self._out / SKIPPED, self._out / MANIFEST):
            if any(path.resolve() == source.resolve() for source in sources):
                raise UsageError(
                    f"{path}: is one of the raw files, and would be replaced; give another --out"
                )
        known = manifest is not None and self._split in manifest["splits"]
        strange = target.exists() and not known and not self._job_file.exists()
        if strange and not self._asked.overwrite:
            raise UsageError(
                f"{target}: is there already, and {MANIFEST} does not say where it is from; "
                f"--overwrite replaces it, another --out leaves it"
            )

    def _say(self, text: str) -> None:
        print(f"{self._converter.name} {self._split}: {text}")

    def _made_by(self) -> dict[str, Any]:
        """Return what determines the records: converter, options, inputs, limit."""
        sources = self._converter.sources(self._raw, self._split, self._options)
        inputs = {
            path_text(os.path.relpath(path, self._raw)): sha256_file(path) for path in sources
        }
        if not self._converter.names_sources:
            inputs["*"] = sha256_listing(self._raw, without=self._out)
        return {
            "converter": {"name": self._converter.name, "version": self._converter.version},
            "options": {
                name: path_text(os.path.relpath(value, self._out))
                if isinstance(value, Path)
                else value
                for name, value in self._options.items()
            },
            "limit": self._asked.limit,
            "inputs": inputs,
        }

    def _is_done(self, entry: dict[str, Any], made_by: dict[str, Any]) -> bool:
        """Return whether the split stands as asked; refuse when it was made otherwise."""
        changes = differences(entry["made_by"], made_by)
        if changes:
            raise UsageError(
                f"{self._out}: {self._split} was made with {'; '.join(changes)}; "
                f"--overwrite replaces it"
            )
        for file in entry["files"]:
            path = self._out / file["path"]
            if not path.is_file() or sha256_file(path) != file["sha256"]:
                self._say(f"{file['path']} is missing or changed; converting again")
                return False
        missing = self._missing_pictures(entry)
        if missing:
            self._say(f"{missing} pictures are missing; making them again")
        return not missing

    def _missing_pictures(self, entry: dict[str, Any]) -> int:
        """Return how many of the pictures that the converter made are gone."""
        if entry["images"] != "made":
            return 0
        names: set[str] = set()
        decoder = msgspec.json.Decoder(_Images)
        for file in entry["files"]:
            for _, line in read_lines(self._out / file["path"]):
                names.update(decoder.decode(line).image)
        return sum(not (self._out / name).is_file() for name in names)

    def _start(self, made_by: dict[str, Any], manifest: dict[str, Any] | None) -> bool:
        """Open the resume state; return whether the pictures that are there can stay."""
        before = read_unfinished(self._job_file)
        if before is not None:
            changes = differences(before.made_by, made_by)
            if not changes:
                self._sweep()
                return before.keep_pictures
            # A picture that came or went is how lost units are mended: begin anew, unasked.
            if changes != ["other input (*)"] and not self._asked.overwrite:
                raise UsageError(
                    f"{self._out}: an unfinished conversion of {self._split} was started with "
                    f"{'; '.join(changes)}; --overwrite discards it"
                )
        shutil.rmtree(self._state, ignore_errors=True)
        entry = (manifest or {"splits": {}})["splits"].get(self._split)
        same = entry is not None and not differences(entry["made_by"], made_by)
        keep = same and not self._asked.overwrite
        if manifest is not None and not keep:
            self._forget(manifest)
        write_json(self._job_file, {"made_by": made_by, "keep_pictures": keep})
        return keep

    def _sweep(self) -> None:
        """Remove the temporary files of a run that was killed."""
        for path in self._out.rglob(".*.tmp"):
            path.unlink()

    def _forget(self, manifest: dict[str, Any]) -> None:
        """Take the split that is about to be replaced out of the dataset."""
        other = manifest["converter"]["name"] != self._converter.name
        if other:
            (self._out / SKIPPED).unlink(missing_ok=True)
        for split in list(manifest["splits"]) if other else [self._split]:
            for file in manifest["splits"].pop(split, {"files": []})["files"]:
                (self._out / file["path"]).unlink(missing_ok=True)
        if manifest["splits"]:
            write_json(self._out / MANIFEST, manifest)
        else:
            (self._out / MANIFEST).unlink(missing_ok=True)

    def _do_parts(
        self, keep_pictures: bool, total: int, tasks: Iterator[Task]
    ) -> tuple[Ledger, list[PartFile]]:
        """Convert every part that is not done; return the sums and the part files in order."""
        job = Job(
            converter=self._converter.name,
            raw=self._raw,
            out=self._out,
            split=self._split,
            options=self._options,
            state=self._state,
            keep_pictures=keep_pictures,
        )
        ledger = Ledger()
        outcomes: list[PartFile] = []

        def remaining() -> Iterator[Task]:
            for task in tasks:
                path = part_file(self._state, task.index)
                outcomes.append((path, task.name))
                before = read_outcome(path, task.name)
                # A part that lost units is done again: its raw files may have been mended.
                if before is not None and not before.skips and has_pictures(before, self._out):
                    ledger.add(before.ledger)
                    advance(1)
                else:
                    yield task

        unit = self._converter.declared("PARTS", "parts") if total else "parts"
        with progress(f"{self._converter.name} {self._split}", total, unit) as advance:
            workers = self._asked.workers or cpu_count()
            work: Callable[[Task], Ledger] = partial(_work, job)
            done = map_unordered(
                work,
                remaining(),
                workers=min(workers, total or workers),
                preload=("adapt.convert",),
            )
            for _, part_ledger in done:
                ledger.add(part_ledger)
                advance(1)
        return ledger, outcomes

    def _tasks(self) -> tuple[int, Iterator[Task]]:
        """Return how many tasks there are (0: not known before) and the tasks in order."""
        parts = self._converter.parts(self._raw, self._split, self._options)
        limit = self._asked.limit
        if parts is None:
            results = self._converter.convert(self._raw, self._split, self._options)
            return 0, group_results(results, limit)
        tasks = []
        for index, part in enumerate(parts):
            if limit is not None and limit <= 0:
                break
            cut = limit if limit is not None and limit < part.units else None
            tasks.append(Task(index, part.name, part=part, limit=cut))
            limit = None if limit is None else limit - part.units
        return len(tasks), iter(tasks)

    def _check(self, ledger: Ledger, outcomes: list[PartFile]) -> None:
        """Stop before any records file is written when units are lost or unaccounted for."""
        if not ledger.balances():
            raise RuntimeError(
                f"converter {self._converter.name}: units do not add up in {self._split}: "
                f"{ledger.lines()[0]}; this is a bug of the converter"
            )
        none_left = ledger.skipped > 0 and not ledger.records
        if ledger.skipped > self._asked.max_skips or none_left:
            self._result.write_skipped(outcomes)
            reasons = ledger.lines()[1].strip()
            allow = f", or allow them with --max-skips {ledger.skipped}"
            raise TooManySkips(
                f"{self._converter.name} {self._split}: {ledger.skipped} of {ledger.units_in} "
                f"units lost, allowed {self._asked.max_skips} ({reasons}); see "
                f"{self._out / SKIPPED}; mend them"
                + ("; no record is left to write" if none_left else allow)
            )
        if not ledger.units_in:
            raise SourceError(
                f"{self._raw}: {self._split} holds no units; {self._converter.expected()}"
            )

    def _drop_state(self) -> None:
        """Remove the resume state; a run killed here leaves that to the next one."""
        if self._job_file.exists():
            shutil.rmtree(self._state, ignore_errors=True)
            self._sweep()
            self._job_file.unlink()


class _Images(msgspec.Struct):
    image: list[str]


_SIZES = SizeCache()


def _work(job: Job, task: Task) -> Ledger:
    """Do a task with this process's cache of picture sizes."""
    return do_task(job, task, _SIZES)
