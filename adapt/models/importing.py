"""Import a checkpoint in OpenGVLab's own layout: to a folder that stock transformers loads.

    config.json, *.safetensors, tokenizer  ->  config.json, *.safetensors, tokenizer.json,
    (internvl_chat)                            processor, chat template, adapt.json, original/

Tensors stream across one at a time, the folder appears whole or not at all, and at the end both
sides compute the same logits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.errors import CheckpointError, nearest
from adapt.models.card import Card, write_card
from adapt.models.chat import ChatTemplate, load_template, template_names
from adapt.models.checkpoint_config import naming, read_config
from adapt.models.conversion import ConversionReport, convert_to_native
from adapt.models.known_layouts import layout_of_original
from adapt.models.layouts import Layout
from adapt.models.native_files import (
    keep_original_files,
    write_config,
    write_generation_config,
    write_processor,
)
from adapt.models.presets import load_preset, preset_names
from adapt.models.shards import DTYPES, Checkpoint, open_checkpoint, write_checkpoint
from adapt.models.tokenizers import (
    check_tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from adapt.models.tokenizers import image_token_id as image_token_of
from adapt.models.verify import open_side, require_agreement
from adapt.new_folder import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_MOST_SPARE_ROWS = 1024


@dataclass(frozen=True)
class _Source:
    """An original checkpoint, understood: what is needed to write it anew."""

    folder: Path
    fields: dict[str, Any]
    layout: Layout
    config: Any
    checkpoint: Checkpoint
    template: ChatTemplate
    tokenizer: PreTrainedTokenizerFast | None


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    verify: bool = True,
    image_token_id: int | None = None,
    preset: str | None = None,
) -> ConversionReport:
    """Import a checkpoint folder in the original layout.

    Args:
        source: Folder with config.json (model_type internvl_chat) and safetensors files.
        out: Folder to write; it must not exist, or be empty.
        verify: Compare the logits of both sides at the end.
        image_token_id: Id of `<IMG_CONTEXT>`, for a folder without a tokenizer, which is then
            imported as weights alone.
        preset: What the folder was asked for by; None: told by its name and its sizes.

    Raises:
        CheckpointError: The folder is damaged, of another model, or its parts do not fit; nothing
            is written.
        CheckFailed: Both sides compute different logits; nothing is written.
    """
    began = time.monotonic()
    with naming(source):
        opened = _open_source(source, image_token_id)
        conversion = convert_to_native(opened.layout, opened.config, opened.checkpoint)
    with new_folder(out) as folder:
        write_checkpoint(folder, conversion.specs, conversion.tensors)
        _write_files(folder, opened, preset or _preset_name(opened))
        difference = None
        if verify:
            image_token = opened.config.image_token_id
            difference = require_agreement(
                open_side(source, image_token), open_side(folder, image_token, name=str(out))
            )
    return ConversionReport(
        out=out,
        layout=opened.layout.name,
        tensors_in=conversion.num_sources,
        tensors_out=len(conversion.specs),
        num_bytes=opened.checkpoint.num_bytes,
        difference=difference,
        seconds=time.monotonic() - began,
    )


def _open_source(source: Path, image_token_id: int | None) -> _Source:
    """Read everything small of a source and make sure that its parts fit."""
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder, expected a checkpoint")
    fields = read_config(source)
    layout = layout_of_original(fields)
    template = _template(fields)
    tokenizer = load_tokenizer(source) if has_tokenizer(source) else None
    if tokenizer is not None:
        _check_size(tokenizer, template, fields)
    config = layout.import_config(fields, _image_token(tokenizer, image_token_id))
    checkpoint = open_checkpoint(source)
    return _Source(source, fields, layout, config, checkpoint, template, tokenizer)


def _check_size(
    tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, fields: dict[str, Any]
) -> None:
    """Refuse a tokenizer of another model, by the number of its ids.

    An embedding may have rows to spare, for a round number or tokens to come, not thousands.
    """
    section = fields.get("llm_config")
    rows = section.get("vocab_size") if isinstance(section, dict) else None
    if not isinstance(rows, int):
        # Reading the config says what is wrong.
        return
    check_tokenizer(tokenizer, template, rows)
    held = 1 + max(tokenizer.get_vocab().values())
    if rows - held > _MOST_SPARE_ROWS:
        raise CheckpointError(
            f"the tokenizer has {held} ids, the embedding {rows} rows; they are of different "
            f"models: put the checkpoint's own tokenizer beside it"
        )


def _template(fields: dict[str, Any]) -> ChatTemplate:
    name = fields.get("template")
    if name not in template_names():
        raise CheckpointError(
            f"config.json: template is {name}, which is not a chat template adapt has"
            f"{nearest(str(name), template_names())}"
        )
    return load_template(str(name))


def _image_token(tokenizer: PreTrainedTokenizerFast | None, given: int | None) -> int:
    if tokenizer is None:
        if given is None:
            raise CheckpointError(
                "has no tokenizer, so the id of <IMG_CONTEXT> is unknown; put the tokenizer's "
                "files there, or give --image-token-id N to import the weights alone"
            )
        return given
    found = image_token_of(tokenizer)
    if given is not None and given != found:
        raise CheckpointError(
            f"--image-token-id is {given}, but <IMG_CONTEXT> is {found} in the tokenizer; leave "
            f"the option out"
        )
    return found


def _write_files(folder: Path, source: _Source, preset: str | None) -> None:
    config, tokenizer = source.config, source.tokenizer
    write_config(folder, config, DTYPES[source.checkpoint.main_dtype])
    write_generation_config(folder, config, tokenizer, source.template)
    if tokenizer is not None:
        write_processor(folder, config, tokenizer, source.template)
    keep_original_files(source.folder, folder)
    card = Card(
        template=source.template.name,
        tile_px=int(config.vision_config.image_size[0]),
        tokens_per_tile=config.image_seq_length,
        preset=preset,
    )
    write_card(folder, card)


def _preset_name(source: _Source) -> str | None:
    """Return the preset of these sizes: the one the folder is named after, else the plain one."""
    fitting = [name for name in preset_names() if _fits(name, source)]
    folder = source.folder.name.lower()
    named = [name for name in fitting if _repository(name).lower() == folder]
    return min(named or fitting, key=len, default=None)


def _repository(name: str) -> str:
    return (load_preset(name).hub_id or "").rpartition("/")[2]


def _fits(name: str, source: _Source) -> bool:
    preset = load_preset(name)
    if preset.template != source.template.name or preset.layout != "original":
        return False
    other = preset.config(source.config.image_token_id)
    return type(other) is type(source.config) and all(
        getattr(getattr(other, section), size) == getattr(getattr(source.config, section), size)
        for section in ("text_config", "vision_config")
        for size in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")
    )
