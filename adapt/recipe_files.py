"""Recipe files: where they are, their YAML with line numbers, overrides from the command line.

recipes/medical.yaml      a file; when absent, the shipped recipe of that name
medical                   the same
adapt/recipes/*.yaml      shipped recipes; adapt/recipes/deepspeed/*.json DeepSpeed settings
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapt.errors import RecipeError, nearest
from adapt.resources import recipes_dir

# YAML 1.1 takes 1e-5 for text (it wants 1.0e-5), which no one means.
_EXPONENT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][+-]?[0-9]+")


@dataclass
class Source:
    """What a recipe file and the overrides say, before it is checked.

    Args:
        path: The file.
        data: Option -> value, nested.
        lines: Dotted option -> its line in the file, from 1.
        overridden: Dotted options set on the command line.
        problems: What is wrong with the text itself.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    overridden: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def place(self, option: str) -> str:
        """Return where `option` was set: the command line, or file and line."""
        if any(name == option or name.startswith(f"{option}.") for name in self.overridden):
            return f"--set {option}"
        line = self.lines.get(option)
        return f"{self.path}:{line}" if line else str(self.path)

    def set(self, override: str, *, is_text: bool) -> None:
        """Apply `key=value`; a value for a text option is taken as it stands, not as YAML."""
        option, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not option:
            self.problems.append(f"--set {override}: expected key=value, such as lora.rank=8")
            return
        try:
            value = (
                text if is_text and text not in ("null", "~") else as_number(yaml.safe_load(text))
            )
        except yaml.YAMLError:
            self.problems.append(f"--set {option}: {text!r} is not a YAML value; quote it")
            return
        *parents, last = option.split(".")
        node = self.data
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
        self.overridden.append(option)


def shipped_names(pattern: str = "*.yaml") -> list[str]:
    """Return the names of the shipped files that match `pattern` below the recipes folder."""
    return sorted(path.stem for path in recipes_dir().glob(pattern))


def shipped_path(name: str) -> Path:
    """Return the file of the shipped recipe `name`.

    Raises:
        RecipeError: There is none; the nearest name is given.
    """
    known = shipped_names()
    if name not in known:
        raise RecipeError(f"{name}: no shipped recipe of this name{nearest(name, known)}")
    return recipes_dir() / f"{name}.yaml"


def resolve_recipe_path(path: Path) -> Path:
    """Return `path`, or the shipped recipe of its name, saying so, when there is no such file.

    Raises:
        RecipeError: It is a folder, or neither a file nor a shipped recipe.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder, expected a recipe file (.yaml)")
    if path.exists():
        return path
    known = shipped_names()
    if path.stem not in known:
        raise RecipeError(
            f"{path}: no such file, and no shipped recipe is called {path.stem}"
            f"{nearest(path.stem, known)}"
        )
    if str(path) != path.stem:
        print(f"{path}: no such file; using the shipped recipe {path.stem}", file=sys.stderr)
    return recipes_dir() / f"{path.stem}.yaml"


def read_source(path: Path) -> Source:
    """Read a recipe file; a repeated option is a problem of the source, not an error yet.

    Raises:
        RecipeError: It cannot be read, is empty, is not YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from error
    if not text.strip():
        raise RecipeError(f"{path}: the file is empty; adapt recipes show medical is an example")
    try:
        data = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{path}{_yaml_place(error)}: not valid YAML: {_yaml_reason(error)}"
        ) from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path}: holds a {type(data).__name__}, expected options (key: value, one a line)"
        )
    source = Source(path, {str(key): value for key, value in data.items()})
    if isinstance(tree, yaml.MappingNode):
        _note_lines(source, tree, prefix="")
    return source


def as_number(value: Any) -> Any:
    """Return numbers like `1e-5` that YAML took for text as numbers, in lists and mappings too."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [as_number(item) for item in value]
    return value


def _note_lines(source: Source, node: yaml.MappingNode, *, prefix: str) -> None:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        line = key.start_mark.line + 1
        if name in source.lines:
            source.problems.append(
                f"{source.path}:{line}: {name} was already set in line {source.lines[name]}; "
                "keep one of them"
            )
        source.lines[name] = line
        if isinstance(value, yaml.MappingNode):
            _note_lines(source, value, prefix=f"{name}.")


def _yaml_place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _yaml_reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
