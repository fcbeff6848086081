"""Find the files shipped with the package: schemas, recipes, fonts, presets."""

from importlib.resources import files
from pathlib import Path

ROOT = Path(str(files("adapt")))


def schema_path(name: str) -> Path:
    """Return the JSON Schema file called `name` (record, dataset, mix, recipe, prediction)."""
    return ROOT / "schemas" / f"{name}.schema.json"


def recipes_dir() -> Path:
    """Return the folder of shipped recipes."""
    return ROOT / "recipes"
