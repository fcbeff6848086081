"""The folder of a checkpoint named on the command line: a path, a preset, a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from adapt.errors import EnvironmentFault, UsageError, nearest
from adapt.models.presets import load_preset, preset_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Never code, never pickles: a repository of these alone has nothing to import.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def checkpoint_folder(name: str, *, workspace: Path = Path(".")) -> Path:
    """Return the folder of a checkpoint in whatever layout; fetched if it is on the hub.

    Args:
        name: A folder, a preset (kept in the workspace's `models/NAME`, else on the hub), or a hub
            id such as `OpenGVLab/InternVL2-2B`.
        workspace: Where `models/` is.

    Raises:
        UsageError: Nothing is called so.
        EnvironmentFault: The hub is out of reach.
    """
    if Path(name).is_dir():
        return Path(name)
    local = workspace / "models" / name
    if local.is_dir():
        return local
    if name in preset_names():
        hub_id = load_preset(name).hub_id
        if hub_id is None:
            raise UsageError(
                f"{name}: this preset has no weights to fetch; train it, or name a folder"
            )
        return _download(hub_id)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _download(name)
    raise UsageError(
        f"{name}: no such folder, and no preset or hub id of that name"
        f"{nearest(name, preset_names())}; see adapt models list"
    )


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The base of all that the network library raises, whichever library this version uses.
    network_error: type[Exception] = HfHubHTTPError.__bases__[0]

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED)))
    except HFValidationError as error:
        raise UsageError(
            f"{repository}: no such folder, and no name that a hub repository can have"
        ) from error
    # Offline, refused, nothing in the cache, a full disk; ValueError: an answer that is no JSON,
    # such as a proxy's login page.
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"{repository}: no such folder, and it cannot be had from the hub ({_reason(error)}); "
            f"fetch it elsewhere and name its folder"
        ) from error
    # What is left is a connection that broke; RuntimeError: in the hub's store of large files.
    except (network_error, RuntimeError) as error:
        raise EnvironmentFault(
            f"{repository}: the connection to the hub broke off ({_reason(error)}); run the same "
            f"command again: complete files are kept"
        ) from error


def _reason(error: Exception) -> str:
    # The first line says what failed, the rest is advice on other libraries' settings.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Got: ")[:200]
