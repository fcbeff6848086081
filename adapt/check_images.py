"""Check the pictures of records: each is opened once, however many records share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapt.images import ImageError, verify_image
from adapt.problems import Problem, show
from adapt.progress import progress
from adapt.records import RecordLine, inside, is_safe_path
from adapt.workers import cpu_count, map_unordered

PICTURES_A_TASK = 64


@dataclass(slots=True)
class _Use:
    """The first record that gives a picture one size, and how many do."""

    file: Path
    line: int
    index: int
    records: int = 0

    def place(self, key: str) -> str:
        return f"$.{key}[{self.index}]"

    def others(self) -> str:
        return f" (and in {self.records - 1} more records)" if self.records > 1 else ""


Found = tuple[int, int] | str
Located = tuple[Path, int, Problem]


class Pictures:
    """The pictures that the records of a dataset name, with the sizes they give.

    Args:
        root: Folder where image paths start.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uses: dict[str, dict[tuple[int, int], _Use]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def add(self, file: Path, line: int, record: RecordLine) -> None:
        """Take note of a record's pictures; those without a size or a safe path are passed over.

        Both are problems of the record that are told without opening anything.
        """
        sizes = zip(record.image, record.width_list, record.height_list, strict=False)
        for index, (path, width, height) in enumerate(sizes):
            if is_safe_path(path):
                uses = self._uses.setdefault(path, {})
                use = uses.setdefault((width, height), _Use(file, line, index))
                use.records += 1

    def problems(self) -> Iterator[Located]:
        """Open every picture; yield file, line and problem in the order of the records."""
        found: list[Located] = []
        paths = list(self._uses)
        tasks = [
            (self._root, paths[start : start + PICTURES_A_TASK])
            for start in range(0, len(paths), PICTURES_A_TASK)
        ]
        workers = min(cpu_count(), len(tasks))
        with progress("check", len(paths), "pictures") as advance:
            for (_, names), sizes in map_unordered(_open_all, tasks, workers=workers):
                for name, size in zip(names, sizes, strict=True):
                    found += self._compare(name, size)
                advance(len(names))
        order = {path: index for index, path in enumerate(dict.fromkeys(f for f, _, _ in found))}
        yield from sorted(found, key=lambda entry: (order[entry[0]], entry[1]))

    def _compare(self, name: str, found: Found) -> Iterator[Located]:
        for (width, height), use in self._uses[name].items():
            if isinstance(found, str):
                wanted = f"a picture below {self._root} that opens{use.others()}"
                problem = Problem(use.place("image"), f"{show(name)}: {found}", wanted)
                yield use.file, use.line, problem
                continue
            for key, given, real in (
                ("width_list", width, found[0]),
                ("height_list", height, found[1]),
            ):
                if given != real:
                    wanted = f"{real}, as {name} has it{use.others()}"
                    yield use.file, use.line, Problem(use.place(key), str(given), wanted)


def _open_all(task: tuple[Path, list[str]]) -> list[Found]:
    root, names = task
    return [_open(root, root / name) for name in names]


def _open(root: Path, path: Path) -> Found:
    if not inside(root, path):
        return "a link that leads out of the dataset's root"
    try:
        return verify_image(path)
    except ImageError as error:
        return str(error)
