"""Find a model: a folder, the workspace, the hub; original layouts are imported once and kept.

    PATH                     a folder with config.json, or a run folder with `model/` in it
    NAME of a preset         workspace/models/NAME, else the preset's repository on the hub
    OWNER/NAME               that repository on the hub

Imported checkpoints are kept in `$ADAPT_CACHE`, `$XDG_CACHE_HOME/adapt` or `~/.cache/adapt`,
under the name of their source and a digest of what it was.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from adapt.errors import CheckpointError, EnvironmentFault
from adapt.jsonl import disk_fault
from adapt.models.checkpoint_config import is_original, read_config, resolve_folder
from adapt.models.hub import checkpoint_folder
from adapt.models.presets import Preset, preset_of

_NATIVE = {"internvl": "internvl", "mono_internvl": "mono"}


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model is.

    Attributes:
        folder: A native checkpoint; None for a preset without weights.
        architecture: `internvl` or `mono`.
        preset: The preset asked for, if one was.
    """

    folder: Path | None
    architecture: str
    preset: Preset | None


def locate(name: str, workspace: Path) -> Found:
    """Find a model by folder, preset or hub id; see the module docstring.

    Raises:
        UsageError: Nothing is called so.
        CheckpointError: The folder is not a checkpoint that adapt knows.
        EnvironmentFault: It would have to come from the hub, which is out of reach.
    """
    if Path(name).is_file():
        raise CheckpointError(
            f"{name}: is a file, expected a checkpoint's folder, a preset or a hub id"
        )
    preset = None if Path(name).is_dir() else preset_of(name)
    if preset is not None and preset.layout == "none":
        return Found(None, preset.architecture, preset)
    wanted = preset.name if preset else name
    try:
        folder = checkpoint_folder(wanted, workspace=workspace)
    except EnvironmentFault as error:
        raise EnvironmentFault(
            f"model {name}: none in {workspace / 'models' / wanted}; {error}, or try the step "
            f"with --set model=tiny (--model tiny)"
        ) from error
    return _open_folder(folder, preset)


def cache_folder() -> Path:
    """Return the folder that imported checkpoints are kept in."""
    if own := os.environ.get("ADAPT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adapt"


def _open_folder(folder: Path, preset: Preset | None) -> Found:
    """Recognise a checkpoint folder; import it when it is in the original layout."""
    folder = resolve_folder(folder)
    config = read_config(folder)
    if is_original(config):
        return _open_folder(_import_once(folder, preset), preset)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _NATIVE:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {kind}, expected one of "
            f"{', '.join(_NATIVE)}, internvl_chat: adapt trains InternVL models"
        )
    return Found(folder, _NATIVE[kind], preset)


def _import_once(folder: Path, preset: Preset | None) -> Path:
    """Return the native copy of an original checkpoint, made now if it is not there yet."""
    from filelock import FileLock

    from adapt.models.importing import import_checkpoint

    out = cache_folder() / "models" / f"{folder.resolve().name}-{_digest(folder)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_fault(error, out.parent) from error
    # All ranks of a training run come here at once; one imports, the others wait.
    with FileLock(out.with_name(f"{out.name}.lock")):
        if not (out / "config.json").exists():
            print(f"importing {folder} (original layout) to {out}, once", file=sys.stderr)
            import_checkpoint(folder, out, preset=preset.name if preset else None)
    return out


def _digest(folder: Path) -> str:
    """Return what tells this state of a folder from another: place, names, sizes, times."""
    state = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            status = path.stat()
            state.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return state.hexdigest()[:12]
