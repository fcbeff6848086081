"""Options held by frozen dataclasses: read from plain data, described, turned into a JSON Schema.

    learning_rate: Annotated[float, Meta(gt=0, le=1, description="Peak learning rate.")] = 1e-5

A field is the whole truth about an option: name, type, bounds, one-line meaning, default.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import orjson

from adapt.errors import nearest
from adapt.recipe_files import Source, as_number

_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "array": "a list",
    "str": "text",
}


def option_types(options: Any, prefix: str = "") -> dict[str, Any]:
    """Return every option's annotated type by dotted name, in order."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        found[prefix + name] = hint
        if dataclasses.is_dataclass(inner := _bare(hint)):
            found |= option_types(inner, f"{prefix}{name}.")
    return found


def meaning(hint: Any) -> str:
    """Return the one-line meaning that an option's annotated type carries."""
    return str(next(meta.description for meta in hint.__metadata__ if meta.description))


def as_plain(options: Any) -> Any:
    """Return options, or one's value, as JSON and YAML have it, every default filled in."""
    return orjson.loads(orjson.dumps(options, default=str))


def options_schema(options: Any) -> dict[str, Any]:
    """Return the JSON Schema of the mapping that sets an options class."""
    hints = typing.get_type_hints(options, include_extras=True)
    properties: dict[str, Any] = {}
    for option in dataclasses.fields(options):
        hint = hints[option.name]
        if dataclasses.is_dataclass(inner := _bare(hint)):
            properties[option.name] = {"description": meaning(hint), **options_schema(inner)}
            continue
        schema = msgspec.json.schema(hint, schema_hook=lambda _: {"type": "string"})
        if option.default is not dataclasses.MISSING:
            schema["default"] = as_plain(option.default)
        properties[option.name] = schema
    return {"type": "object", "properties": properties, "additionalProperties": False}


def read_options(
    options: Any, source: Source, data: dict[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Return the fields of dataclass `options` that `data` sets; note problems in `source`."""
    hints = typing.get_type_hints(options, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            near = nearest(name, option_types(options, prefix))
            source.problems.append(f"{source.place(name)}: unknown option {name}{near}")
        elif dataclasses.is_dataclass(inner := _bare(hints[key])):
            values[key] = _read_nested(inner, source, value, name)
        else:
            values[key] = _read_value(source, name, value, hints[key])
    return values


def _read_nested(inner: Any, source: Source, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        source.problems.append(
            f"{source.place(name)}: {name} is {value!r}, expected options below it; "
            f"such as {name}: {{{next(iter(typing.get_type_hints(inner)))}: ...}}"
        )
        return None
    values = read_options(inner, source, value, f"{name}.")
    return None if source.problems else inner(**values)


def _read_value(source: Source, name: str, value: Any, hint: Any) -> Any:
    if not is_text(hint):
        value = as_number(value)
    try:
        return msgspec.convert(value, hint, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        source.problems.append(
            f"{source.place(name)}: {name} is {value!r}, expected {_expected(hint, value, error)}"
            f" ({meaning(hint).rstrip('.')})"
        )
        return None


def _expected(hint: Any, value: Any, error: msgspec.ValidationError) -> str:
    choices = _choices(hint)
    if choices:
        near = nearest(str(value), choices)
        return f"one of {', '.join(choices)}" + (near if "did you mean" in near else "")
    example = next((f", such as '{m.examples[0]}'" for m in hint.__metadata__ if m.examples), "")
    if is_text(hint):
        return f"text{example}" if isinstance(value, str) else f"text in quotes{example}"
    expected = str(error).removeprefix("Expected ").partition(", got")[0]
    return re.sub(r"`[^`]*`", _in_words, expected) + example


def _in_words(name: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(part, part) for part in name[0].strip("`").split(" | "))


def _choices(hint: Any) -> tuple[str, ...]:
    for part in (_bare(hint), *typing.get_args(_bare(hint))):
        if typing.get_origin(part) is Literal:
            return typing.get_args(part)
    return ()


def is_text(hint: Any) -> bool:
    """Return whether an option takes text as it stands: text or a path, or one of these or null."""
    bare = _bare(hint)
    union = typing.get_origin(bare) in (typing.Union, types.UnionType)
    parts = typing.get_args(bare) if union else (bare,)
    return any(_bare(part) in (str, Path) for part in parts)


def _bare(hint: Any) -> Any:
    """Return a type without what Annotated adds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _to_path(wanted: type, value: Any) -> Any:
    if wanted is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("Expected a path")
