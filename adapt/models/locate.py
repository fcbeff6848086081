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
import re
from dataclasses import dataclass
from pathlib import Path

from adapt.errors import CheckpointError, EnvironmentFault, UsageError, nearest
from adapt.models.checkpoint_config import is_original, read_config, resolve_folder
from adapt.models.presets import Preset, load_preset, preset_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NATIVE = {"internvl": "internvl", "mono_internvl": "mono"}
# Never code, never pickles.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


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
    if Path(name).is_dir():
        return _open_folder(Path(name), None)
    preset = _preset_of(name)
    if preset is None and not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"no model is called {name}: no such folder, and no such preset"
            f"{nearest(name, preset_names())}"
        )
    if preset is not None and preset.layout == "none":
        return Found(None, preset.architecture, preset)
    local = workspace / "models" / (preset.name if preset else name)
    if local.is_dir():
        return _open_folder(local, preset)
    repository = preset.hub_id if preset and preset.hub_id else name
    return _open_folder(_download(repository, name, local), preset)


def cache_folder() -> Path:
    """Return the folder that imported checkpoints are kept in."""
    if own := os.environ.get("ADAPT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adapt"


def _preset_of(name: str) -> Preset | None:
    if name in preset_names():
        return load_preset(name)
    presets = (load_preset(known) for known in preset_names())
    return next((preset for preset in presets if preset.hub_id == name), None)


def _open_folder(folder: Path, preset: Preset | None) -> Found:
    """Recognise a checkpoint folder; import it when it is in the original layout."""
    folder = resolve_folder(folder)
    config = read_config(folder)
    if is_original(config):
        return _open_folder(_import_once(folder), preset)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _NATIVE:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {kind}, expected one of "
            f"{', '.join(_NATIVE)}, internvl_chat: adapt trains InternVL models"
        )
    return Found(folder, _NATIVE[kind], preset)


def _import_once(folder: Path) -> Path:
    """Return the native copy of an original checkpoint, made now if it is not there yet."""
    from filelock import FileLock

    from adapt.models.importing import import_checkpoint

    out = cache_folder() / "models" / f"{folder.resolve().name}-{_digest(folder)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    # All ranks of a training run come here at once; one imports, the others wait.
    with FileLock(out.with_name(f"{out.name}.lock")):
        if not (out / "config.json").exists():
            print(f"importing {folder} (original layout) to {out}, once", flush=True)
            import_checkpoint(folder, out)
    return out


def _digest(folder: Path) -> str:
    """Return what tells this state of a folder from another: place, names, sizes, times."""
    state = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            status = path.stat()
            state.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return state.hexdigest()[:12]


def _download(repository: str, name: str, local: Path) -> Path:
    """Fetch a repository of the hub, or find it in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The base of all failures of the HTTP library, which changes with the hub's releases.
    broken_connection: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED)))
    except (OSError, broken_connection) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"model {name}: no folder of that name, none at {local}, and {repository} cannot be "
            f"had from the hub ({reason}); put the checkpoint in one of the three places, or try "
            f"the step with --set model=tiny"
        ) from error
