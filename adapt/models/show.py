"""What `adapt models list` and `adapt models show` print.

A rendered record is its exact token sequence, `id:text` each, learned lines marked with `>`:

    drivelm/train/1f_2a_0: 262 tokens, 208 of them of 13 tiles, 5 learned
        1:<|im_start|> 342:system 210:\\n
        ...
    >   402:Go 310:ing 511: ahead 25:. 2:<|im_end|>
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from adapt.errors import RecordError
from adapt.jsonl import read_records
from adapt.models.chat import UNSUPERVISED, Sample, load_template
from adapt.models.handle import ModelHandle, open_model
from adapt.models.presets import Preset, load_preset, preset_names
from adapt.models.tokenizers import has_tokenizer
from adapt.tiling import record_tiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WIDTH = 100


def list_models() -> Iterator[str]:
    """Yield a line for each preset: name, parameters, chat template, where it comes from."""
    presets = [load_preset(name) for name in preset_names()]
    width = max(len(preset.name) for preset in presets)
    for preset in presets:
        total = _short(preset.parameters.total)
        origin = preset.hub_id or "random weights, in the package"
        yield f"{preset.name:<{width}}  {total:>7}  {preset.template:<14}  {origin}"


def show_model(name: str, *, workspace: Path = Path(".")) -> Iterator[str]:
    """Yield the lines that describe a preset or a checkpoint folder.

    Raises:
        UsageError: Nothing is called so.
        CheckpointError: The folder is not a checkpoint of InternVL.
    """
    if name in preset_names():
        yield from _describe(load_preset(name))
        return
    handle = open_model(name, workspace=workspace)
    yield f"folder         {handle.folder}"
    yield f"architecture   {handle.architecture}"
    yield f"preset         {handle.preset.name if handle.preset else 'none'}"
    yield f"tile           {handle.tile_px} px, {handle.tokens_per_tile} tokens"
    if has_tokenizer(handle.tokenizer_folder):
        yield f"vocabulary     {handle.vocab_size}, <IMG_CONTEXT> is {handle.image_token_id}"
    else:
        token = handle.config().image_token_id
        yield f"vocabulary     {handle.vocab_size}, <IMG_CONTEXT> is {token}; no tokenizer: weights"
    if handle.max_positions is not None:
        yield f"longest record {handle.max_positions} tokens (dynamic rope)"
    if handle.rope_switch is not None:
        yield f"rope switch    after {handle.rope_switch} tokens (long rope)"
    yield from _template_lines(handle.template.name)


def render_records(
    handle: ModelHandle, records: Path, *, max_tiles: int = 12, limit: int = 3
) -> Iterator[str]:
    """Yield the exact token sequences of a file's first records, what is learned marked.

    Args:
        handle: Whose tokenizer and chat template.
        records: Records file; pictures are not opened, their sizes are in it.
        max_tiles: Most tiles of a picture.
        limit: How many records.

    Raises:
        RecordError: A line is not a record, or its pictures and `<image>` do not match.
    """
    for number, record in islice(read_records(records), limit):
        try:
            tiles = record_tiles(
                record.width_list, record.height_list, record.task, max_tiles=max_tiles
            )
            sample = handle.encode(record.conversations, tiles)
        except RecordError as error:
            raise RecordError(f"{records}:{number}: {error}") from error
        learned = sum(label != UNSUPERVISED for label in sample.labels)
        count = sum(tiles)
        of_tiles = f"{count * handle.tokens_per_tile} of them of {count} tile{'s' * (count != 1)}"
        yield f"{record.id}: {len(sample.input_ids)} tokens, {of_tiles}, {learned} learned"
        yield from _token_lines(handle.tokenizer, sample)


def _describe(preset: Preset) -> Iterator[str]:
    counts = preset.parameters
    text = preset.text
    yield f"{preset.title}: {preset.architecture}, language model {preset.language_model}"
    yield f"parameters     {_short(counts.total)} in all: vision {_short(counts.vision)}, " + (
        f"projector {_short(counts.projector)}, language {_short(counts.language)}"
    )
    yield f"tile           {preset.tile_px} px, {preset.tokens_per_tile} tokens"
    yield f"text           {text['model_type']}, " + ", ".join(
        f"{text[size]} {size.removeprefix('num_').replace('_', ' ')}"
        for size in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    yield f"tokenizer      {preset.tokenizer}; special tokens {' '.join(preset.tokens)}"
    yield from _template_lines(preset.template)
    yield f"hub id         {preset.hub_id or 'none'} ({preset.layout} layout)"
    yield f"licence        {preset.licence}"
    yield f"source         {preset.source}"
    for doubt in preset.unverified:
        yield f"unverified     {doubt}"


def _template_lines(name: str) -> Iterator[str]:
    template = load_template(name)
    yield f"chat template  {name}"
    for field in ("system_header", "system", "user_header", "assistant_header", "end", "after_end"):
        written = msgspec.json.encode(getattr(template, field)).decode()
        yield f"  {field:<16} {written}"
    yield f"  {'stop':<16} {' '.join(template.stop)}"


def _token_lines(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> Iterator[str]:
    """Yield lines of `id:text`; repeated tokens once with their number."""
    line, line_learned = "", False
    pairs = zip(sample.input_ids, sample.labels, strict=True)
    for (token, label), run in groupby(pairs):
        learned, count = label != UNSUPERVISED, sum(1 for _ in run)
        text = _visible(tokenizer, token)
        word = f"{token}:{text}" + (f" x {count}" if count > 1 else "")
        if line and (learned != line_learned or len(line) + len(word) > _WIDTH):
            yield _marked(line, learned=line_learned)
            line = ""
        line, line_learned = f"{line} {word}" if line else word, learned
        if text.endswith("\\n") and not text.endswith("\\\\n"):
            yield _marked(line, learned=line_learned)
            line = ""
    if line:
        yield _marked(line, learned=line_learned)


def _marked(line: str, *, learned: bool) -> str:
    return f"{'>' if learned else ' '}   {line}"


def _visible(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """Return a token's text on one line; the piece itself where it is no whole text."""
    piece = str(tokenizer.convert_ids_to_tokens(token))
    text = piece if "▁" in piece else str(tokenizer.decode([token]))
    if not text or "\ufffd" in text:
        text = piece
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text.replace("\\", "\\\\")
    )


def _short(count: int) -> str:
    """Return a count as model cards write it.

    >>> _short(938158976), _short(4482816), _short(895680)
    ('0.94 B', '4.48 M', '0.90 M')
    """
    return f"{count / 1e9:.2f} B" if count >= 5e8 else f"{count / 1e6:.2f} M"
