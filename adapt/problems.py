"""Problems: a place, what was found there, what was expected; and those that a JSON Schema finds.

    $.conversations[1].from found "user", expected "human" or "gpt"

Whole numbers are stricter than in the draft: `3.0` is none, because typed readers refuse it.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from adapt.errors import nearest
from adapt.resources import schema_path

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_SHOWN = 60


class Problem(NamedTuple):
    """Something wrong with a value.

    Args:
        place: Where in the value, as a JSON path: `$.image[0]`.
        found: What is there.
        expected: What should be there.
    """

    place: str
    found: str
    expected: str

    def __str__(self) -> str:
        """Return the problem as one line, without the file's name."""
        return f"{self.place} found {self.found}, expected {self.expected}"


def show(value: object) -> str:
    """Return a value as JSON, cut to a length that fits a line.

    >>> show({"a": "ä"}), len(show("x" * 100))
    ('{"a": "ä"}', 63)
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= _SHOWN:
        return text
    end = '"' if isinstance(value, str) else ""
    return f"{text[: _SHOWN - len(end)]}...{end}"


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole)
    strict: Any = extend(Draft202012Validator, type_checker=checker)  # type: ignore[no-untyped-call]
    return strict(orjson.loads(schema_path(name).read_bytes()))


def _is_whole(_checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def schema_problems(value: object, name: str) -> list[Problem]:
    """Return every problem that the schema called `name` finds in a parsed JSON value."""
    problems: dict[Problem, None] = {}
    for error in sorted(_validator(name).iter_errors(value), key=lambda error: error.json_path):
        problems.update(dict.fromkeys(_read_error(error)))
    return list(problems)


def _read_error(error: ValidationError) -> list[Problem]:
    """Say a validator's error in our own words; one keyword may stand for several problems."""
    place = error.json_path
    value: Any = error.instance
    wanted: Any = error.validator_value
    keyword = str(error.validator)
    if keyword == "required" and isinstance(value, dict):
        missing = [key for key in wanted if key not in value]
        return [Problem(f"{place}.{key}", "nothing", "this key") for key in missing]
    if keyword == "additionalProperties" and isinstance(value, dict) and wanted is False:
        schema: Any = error.schema
        known = dict(schema.get("properties", {}))
        unknown = [key for key in value if key not in known]
        return [
            Problem(f"{place}.{key}", f"an unknown key{nearest(key, known)}", "no such key")
            for key in unknown
        ]
    return [Problem(place, _found(keyword, value), _expected(keyword, wanted, error.message))]


def _found(keyword: str, value: Any) -> str:
    if keyword in ("minItems", "maxItems"):
        return f"{len(value)} entries"
    return "an empty string" if value == "" else show(value)


def _expected(keyword: str, wanted: Any, message: str) -> str:
    if keyword == "type":
        names = {"integer": "a whole number", "array": "a list"}
        kinds = [wanted] if isinstance(wanted, str) else wanted
        return " or ".join(names.get(kind, f"a {kind}".replace("a o", "an o")) for kind in kinds)
    if keyword in ("enum", "const"):
        return " or ".join(show(one) for one in (wanted if keyword == "enum" else [wanted]))
    sayings = {
        "minLength": "at least {} character",
        "minItems": "at least {} entries",
        "maxItems": "at most {} entries",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "pattern": "text that matches {}",
    }
    return sayings[keyword].format(wanted) if keyword in sayings else message
