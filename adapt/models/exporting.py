"""Export a native checkpoint: back to OpenGVLab's layout, bit for bit, or to a plain native folder.

    native folder (adapt's own, or any `-hf` InternVL)  ->  original: config.json (internvl_chat),
                                                            safetensors, tokenizer, preprocessor
                                                        ->  native: as save_pretrained writes it

What an imported folder keeps in `original/` comes back as it was; for another folder it is written
anew (`adapt.models.original_files`).
"""

from __future__ import annotations

import time
from pathlib import Path

from adapt.errors import UsageError
from adapt.models.card import write_card
from adapt.models.chat import load_template
from adapt.models.checkpoint_config import is_original, naming, read_config, resolve_folder
from adapt.models.conversion import (
    ConversionReport,
    convert_to_original,
    copy_native,
)
from adapt.models.importing import import_checkpoint
from adapt.models.native_files import (
    carry_original_files,
    write_config,
    write_generation_config,
    write_processor,
)
from adapt.models.native_source import NativeSource, open_native
from adapt.models.original_files import write_original_files
from adapt.models.shards import DTYPES, write_checkpoint
from adapt.models.tokenizers import has_tokenizer, load_tokenizer
from adapt.models.verify import open_side, require_agreement
from adapt.new_folder import new_folder


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    layout: str = "original",
    verify: bool = True,
) -> ConversionReport:
    """Write a native checkpoint in another layout.

    Args:
        source: Native checkpoint folder, or a run folder with one in `model/`.
        out: Folder to write; it must not exist, or be empty.
        layout: `original` for LMDeploy, vLLM and VLMEvalKit; `native` for stock transformers.
        verify: Compare the logits of both sides at the end.

    Raises:
        UsageError: The source has that layout already, or the layout has no name.
        CheckpointError: The source is damaged or of another model; nothing is written.
        CheckFailed: Both sides compute different logits; nothing is written.
    """
    if layout not in ("original", "native"):
        raise UsageError(f"--layout is {layout}, expected original or native")
    folder = resolve_folder(source)
    if is_original(read_config(folder)):
        if layout == "original":
            raise UsageError(f"{folder}: is in the original layout already; nothing to export")
        return import_checkpoint(folder, out, verify=verify)
    began = time.monotonic()
    native = open_native(folder)
    convert = convert_to_original if layout == "original" else copy_native
    with naming(folder):
        conversion = convert(native.layout, native.config, native.checkpoint)
    with new_folder(out) as temporary:
        write_checkpoint(temporary, conversion.specs, conversion.tensors)
        if layout == "original":
            write_original_files(temporary, native)
        else:
            write_native_files(temporary, native)
        difference = None
        if verify:
            token = native.config.image_token_id
            difference = require_agreement(
                open_side(folder, token), open_side(temporary, token, name=str(out))
            )
    return ConversionReport(
        out=out,
        layout=native.layout.name,
        tensors_in=conversion.num_sources,
        tensors_out=len(conversion.specs),
        num_bytes=native.checkpoint.num_bytes,
        difference=difference,
        seconds=time.monotonic() - began,
    )


def write_native_files(folder: Path, source: NativeSource) -> None:
    """Write everything of a native folder but its weights."""
    config = source.config
    template = load_template(source.card.template)
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else None
    write_config(folder, config, DTYPES[source.checkpoint.main_dtype])
    write_generation_config(folder, config, tokenizer, template)
    if tokenizer is not None:
        write_processor(folder, config, tokenizer, template)
    write_card(folder, source.card)
    carry_original_files(source.folder, folder)
