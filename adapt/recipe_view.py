"""Show and copy recipes: `adapt recipes list`, `show`, `copy`; the resolved recipe of a run."""

from __future__ import annotations

from pathlib import Path

import yaml

from adapt.errors import UsageError
from adapt.jsonl import write_bytes
from adapt.options import as_plain, meaning, option_types
from adapt.recipe import Recipe, load_recipe
from adapt.recipe_files import shipped_names, shipped_path

_COMMENT_COLUMN = 34


def print_recipes() -> None:
    """Print every shipped recipe: name, domains, ratio, description."""
    rows = [("RECIPE", "DOMAINS", "GENERAL:DOMAIN", "WHAT IT IS")]
    for name in shipped_names():
        recipe = load_recipe(shipped_path(name))
        rows.append((name, ", ".join(recipe.domains), recipe.ratio or "-", recipe.description))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())


def print_recipe(name: str) -> None:
    """Print a recipe, shipped or a file, with every default filled in."""
    print(render_recipe(load_recipe(Path(name))), end="")


def copy_recipe(name: str, out: Path) -> None:
    """Copy the shipped recipe `name` to the file or folder `out`.

    Raises:
        RecipeError: No such recipe.
        UsageError: There is a file already.
    """
    source = shipped_path(name)
    target = out if out.suffix in (".yaml", ".yml") else out / source.name
    if target.exists():
        raise UsageError(f"{target}: exists already; remove it or name another file")
    write_bytes(target, source.read_bytes())
    print(f"copied the shipped recipe {name} to {target}")


def render_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every default filled in and every meaning beside it.

    The text is a recipe file: reading it gives an equal recipe.
    """
    values = as_plain(recipe)
    lines = []
    for option, hint in option_types(Recipe).items():
        parent, _, child = option.rpartition(".")
        value = values[parent][child] if parent else values[option]
        # A mapping opens; its own options follow, indented.
        text = "" if isinstance(value, dict) else f" {_inline(value)}"
        line = f"{'  ' * bool(parent)}{child}:{text}"
        lines.append(f"{line.ljust(_COMMENT_COLUMN)}  # {meaning(hint)}")
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True)
    return text.strip()[1:-1]
