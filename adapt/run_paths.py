"""The folder of a run: what is in it.

RUN/
    recipe.yaml      every option, defaults filled in
    versions.json    what it ran on
    plan/            plan.parquet
    metrics.jsonl    a line a step; tensorboard/ has the same
    unreadable.jsonl records that were left out, when the recipe allows it
    checkpoints/     see adapt.train.checkpoint
    logs/            what ranks wrote, when there are several
    adapter/         LoRA: the adapter alone
    model/           the result, a checkpoint for adapt predict and transformers
    README.md        model card
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LATEST = "latest"
"""Beside the checkpoints: the name of the newest."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Folder of the plan."""
        return self.folder / "plan"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        """The adapter alone, of a LoRA run."""
        return self.folder / "adapter"

    @property
    def logs(self) -> Path:
        """Folder of the ranks' logs."""
        return self.folder / "logs"

    @property
    def versions(self) -> Path:
        """What it ran on."""
        return self.folder / "versions.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of the events."""
        return self.folder / "tensorboard"

    @property
    def card(self) -> Path:
        """Model card."""
        return self.folder / "README.md"

    @property
    def metrics(self) -> Path:
        """A line for each step."""
        return self.folder / "metrics.jsonl"

    @property
    def unreadable(self) -> Path:
        """A line for each record left out."""
        return self.folder / "unreadable.jsonl"

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint or a model, which another run would overwrite."""
        return (self.checkpoints / LATEST).exists() or self.model.exists()
