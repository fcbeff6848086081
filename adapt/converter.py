"""Find converters and read what they declare.

A converter is a module of `adapt.converters`, or of another package through the entry-point group
`adapt.converters`. It declares:

    SPLITS, ROLE, DOMAIN                      which splits, `domain` or `general`, which domain
    FAMILY                                    `classification`, `grounding`, `multi-view`, ...
    LICENCE, SOURCE, FILES, COORDINATES       said by `--list`, in errors and in dataset.json
    PARTS                                     what its parts are called on screen: `frames`
    convert(raw, split, **options)            yields Record, Skip, NotInSplit, UnitsRead
    parts(raw, split, **options)              optional: independent pieces, read on their own by
    convert_part(raw, split, part, **options)
    sources(raw, split, **options)            optional: the annotation files it reads
    notices(raw, split, **options)            optional: what to say before it starts
    splits(raw, **options)                    optional: the splits present in the raw folder
    image_root(raw, **options)                optional: the folder its image paths start from

Its options are the keyword-only parameters of `convert`, annotated `Annotated[type, "help"]`.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from adapt import __version__
from adapt.errors import SourceError, UsageError, nearest
from adapt.records import Part, Result

GROUP = "adapt.converters"
ROLES = ("domain", "general")
ANNOTATIONS = {".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".xml", ".yaml", ".yml"}


@dataclass(frozen=True, slots=True)
class Option:
    """One of a converter's own options.

    Args:
        name: Parameter name; `--name` on the command line.
        annotation: Its type.
        default: Its default value.
        help: One line for `--help`.
    """

    name: str
    annotation: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Converter:
    """A converter by name, with what its module declares filled in.

    Args:
        name: Its name on the command line.
        module: The module that holds it.
        release: Version of the distribution that brings it.
    """

    name: str
    module: ModuleType
    release: str = __version__

    def __post_init__(self) -> None:
        """Check the declarations that every converter must have."""
        for constant in ("SPLITS", "ROLE", "DOMAIN", "convert"):
            if not hasattr(self.module, constant):
                raise UsageError(
                    f"converter {self.name}: {self.module.__name__} declares no {constant}; "
                    f"see docs/converters.md"
                )
        if self.module.ROLE not in ROLES:
            raise UsageError(
                f"converter {self.name}: ROLE is {self.module.ROLE!r}, expected domain or general"
            )

    @property
    def role(self) -> str:
        """`domain` or `general`."""
        return str(self.module.ROLE)

    @property
    def domain(self) -> str:
        """The domain's name, such as `driving`."""
        return str(self.module.DOMAIN)

    @property
    def summary(self) -> str:
        """First line of the module's docstring."""
        return (inspect.getdoc(self.module) or self.name).splitlines()[0]

    def declared(self, constant: str, default: str = "") -> str:
        """Return a declared text: FAMILY, LICENCE, SOURCE, FILES, COORDINATES or PARTS."""
        return str(getattr(self.module, constant, default))

    @cached_property
    def version(self) -> str:
        """The module's own version where it declares one, else that of its distribution."""
        return str(getattr(self.module, "__version__", self.release))

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The converter's own options, in the order of its signature."""
        hints = get_type_hints(self.module.convert, include_extras=True)
        found = []
        for parameter in inspect.signature(self.module.convert).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name == "part":
                continue
            hint = hints[parameter.name]
            annotation, *notes = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
            help_text = next((note for note in notes if isinstance(note, str)), "")
            found.append(Option(parameter.name, annotation, parameter.default, help_text))
        return tuple(found)

    def splits(self, raw: Path, options: Mapping[str, object]) -> list[str]:
        """Return the splits present in the raw folder, in the converter's order.

        Raises:
            SourceError: None is.
        """
        if hasattr(self.module, "splits"):
            present = list(self.module.splits(raw, **options))
        elif self.names_sources:
            present = self._splits_with_sources(raw, options)
        else:
            present = list(self.module.SPLITS)
        if not present:
            raise SourceError(f"{raw}: holds no split of {self.name}; {self.expected()}")
        return present

    def expected(self) -> str:
        """Return the clause on which raw files are expected and where they come from."""
        files = self.declared("FILES") or f"the files named in {self.module.__name__}"
        source = self.declared("SOURCE")
        return f"expected {files}" + (f", from {source}" if source else "")

    @property
    def names_sources(self) -> bool:
        """Whether the module says which files decide what its records are."""
        return hasattr(self.module, "sources")

    def sources(self, raw: Path, split: str, options: Mapping[str, object]) -> list[Path]:
        """Return the annotation files of a split; when not declared, every file of their kinds."""
        if self.names_sources:
            return list(self.module.sources(raw, split, **options))
        return sorted(path for path in raw.rglob("*") if path.suffix.lower() in ANNOTATIONS)

    def notices(self, raw: Path, split: str, options: Mapping[str, object]) -> list[str]:
        """Return what the user should know before the split is converted."""
        if not hasattr(self.module, "notices"):
            return []
        return list(self.module.notices(raw, split, **options))

    def parts(self, raw: Path, split: str, options: Mapping[str, object]) -> list[Part] | None:
        """Return the independent pieces of a split, or None for a converter without parts."""
        if not hasattr(self.module, "parts"):
            return None
        return list(self.module.parts(raw, split, **options))

    def convert(self, raw: Path, split: str, options: Mapping[str, object]) -> Iterator[Result]:
        """Yield the results of a whole split."""
        return iter(self.module.convert(raw, split, **options))

    def convert_part(
        self, raw: Path, split: str, part: Part, options: Mapping[str, object]
    ) -> Iterator[Result]:
        """Yield the results of one part."""
        return iter(self.module.convert_part(raw, split, part, **options))

    def image_root(self, raw: Path, options: Mapping[str, object]) -> Path:
        """Return the folder that the paths of raw pictures start from."""
        if hasattr(self.module, "image_root"):
            return Path(self.module.image_root(raw, **options))
        return raw

    def _splits_with_sources(self, raw: Path, options: Mapping[str, object]) -> list[str]:
        """Return the splits whose sources are there.

        Raises:
            SourceError: None is; why not, of the first.
        """
        present = []
        problems = []
        for split in self.module.SPLITS:
            try:
                if all(path.exists() for path in self.sources(raw, split, options)):
                    present.append(split)
            except SourceError as error:
                problems.append(error)
        if problems and not present:
            raise problems[0]
        return present


def converter_modules() -> dict[str, str]:
    """Return every converter's name and module path."""
    return {name: found[0][0] for name, found in _registered().items()}


def load_converter(name: str) -> Converter:
    """Return the converter called `name`.

    Raises:
        UsageError: There is none, with the nearest name; there are two; or its package cannot be
            imported.
    """
    registered = _registered()
    if name not in registered:
        raise UsageError(f"no converter is called {name}{nearest(name, registered)}")
    (path, release), *others = registered[name]
    if others:
        raise UsageError(
            f"converter {name}: {others[0][0]} {others[0][1]} has the name of {path} {release}; "
            f"uninstall one, or rename its entry point"
        )
    try:
        module = import_module(path)
    except Exception as error:
        # Another package's code runs here, and may raise anything; a fault of our own is a bug.
        if path.startswith("adapt.converters.") and not isinstance(error, ImportError):
            raise
        what = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UsageError(
            f"converter {name}: {path} {release} cannot be imported ({what}); install what it "
            f"needs, or uninstall it"
        ) from error
    return Converter(name, module, release)


def _registered() -> dict[str, list[tuple[str, str]]]:
    """Return, by name, the module path and release of every converter so called."""
    import adapt.converters

    found = {
        module.name: [(f"adapt.converters.{module.name}", __version__)]
        for module in pkgutil.iter_modules(adapt.converters.__path__)
        if not module.name.startswith("_")
    }
    for point in entry_points(group=GROUP):
        release = point.dist.version if point.dist else __version__
        found.setdefault(point.name, []).append((point.value, release))
    return dict(sorted(found.items()))
