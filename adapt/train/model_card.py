"""The model card of a run, RUN/README.md: what the model is made of and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import yaml

from adapt.jsonl import write_bytes
from adapt.run_paths import RunFolder

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.freeze import FreezeReport
    from adapt.models.handle import ModelHandle
    from adapt.recipe import Recipe

# Steps whose mean is called the first and the last loss: one step alone is mostly noise.
_MEAN_OVER = 10
_OPENED = {
    "internvl": "`model/` opens with `InternVLForConditionalGeneration.from_pretrained` as well.",
    "mono": (
        "`model/` opens with `AutoModelForImageTextToText.from_pretrained` as well, after "
        "`import adapt.models.mono`."
    ),
}


def write_card(
    run: RunFolder, recipe: Recipe, handle: ModelHandle, mix: Mix, counts: FreezeReport
) -> None:
    """Write the model card of a run that has ended."""
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if handle.preset is not None:
        head |= {"license": handle.preset.licence}
        head |= {"base_model": handle.preset.hub_id} if handle.preset.hub_id else {}
    text = "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# {recipe.name}",
            "",
            recipe.description or f"{handle.name}, trained by adapt.",
            "",
            *_facts(run, recipe, handle, counts),
            "",
            "## Data",
            "",
            *_data(mix),
            "",
            "## Loss",
            "",
            *_losses(run),
            "",
            "## Use",
            "",
            "```",
            f"adapt predict RECORDS --model {run.folder} --out answers.jsonl",
            "```",
            "",
            f"{_OPENED[handle.architecture]} The exact settings are in `recipe.yaml`, the "
            f"software in `versions.json`.",
            "",
        ]
    )
    write_bytes(run.card, text.encode())


def _facts(run: RunFolder, recipe: Recipe, handle: ModelHandle, counts: FreezeReport) -> list[str]:
    lost = len(run.unreadable.read_bytes().splitlines()) if run.unreadable.exists() else 0
    title = handle.preset.title if handle.preset else handle.name
    return [
        f"- Base: {title} (`{handle.name}`), chat template {handle.template.name}",
        f"- Method: {recipe.method}; {counts}",
        f"- Optimiser: AdamW, learning rate {recipe.learning_rate:g} ({recipe.schedule}), loss "
        f"weights `{recipe.loss}`, seed {recipe.seed}",
        f"- Records that could not be read and were left out: {lost}",
    ]


def _data(mix: Mix) -> list[str]:
    rows = [
        f"| {source.name} | {source.role} | {source.domain or '-'} | {source.rows_used} "
        f"| {source.rows_used / mix.manifest.rows:.1%} |"
        for source in mix.manifest.sources
    ]
    reached = f"{mix.manifest.rows} records, general:domain = {mix.manifest.reached}."
    header = ["| source | side | domain | records | share |", "| --- | --- | --- | --- | --- |"]
    return [reached, "", *header, *rows]


def _losses(run: RunFolder) -> list[str]:
    lines = [orjson.loads(line) for line in run.metrics.read_bytes().splitlines()]
    if not lines:
        return ["No step was made."]
    count = max(1, min(_MEAN_OVER, len(lines) // 2))
    first, last = (
        sum(line["loss"] for line in part) / count for part in (lines[:count], lines[-count:])
    )
    lasting = "one line" if count == 1 else f"the mean of {count} lines"
    return [
        f"{lines[-1]['step']} steps, {sum(line['tokens'] for line in lines):,} tokens. Training "
        f"loss {first:.4f} at the start, {last:.4f} at the end (each {lasting} of "
        f"`metrics.jsonl`)."
    ]
