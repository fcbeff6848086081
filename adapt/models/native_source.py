"""A native checkpoint folder, opened: what every step that reads one must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.errors import CheckpointError
from adapt.models.card import Card, read_card
from adapt.models.checkpoint_config import naming, native_config, read_config
from adapt.models.known_layouts import layout_of_native
from adapt.models.layouts import Layout
from adapt.models.shards import Checkpoint, open_checkpoint

# The only native checkpoints that adapt did not make are InternVL2.5 and later.
_STOCK_TEMPLATE = "internvl2_5"


@dataclass(frozen=True)
class NativeSource:
    """A native checkpoint, understood.

    Attributes:
        folder: Where it is.
        layout: Its kind.
        config: Its transformers config, with the same `tie_word_embeddings` on both levels.
        checkpoint: Its tensors, under their names in memory.
        card: What it says of itself; for a stock checkpoint what is known of those.
    """

    folder: Path
    layout: Layout
    config: Any
    checkpoint: Checkpoint
    card: Card


def open_native(folder: Path) -> NativeSource:
    """Read everything small of a native checkpoint.

    Raises:
        CheckpointError: It is damaged, of another model, or contradicts itself.
    """
    fields = read_config(folder)
    with naming(folder):
        layout = layout_of_native(fields)
        config = native_config(fields)
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    checkpoint = open_checkpoint(folder).renamed(layout.memory_name)
    if config.tie_word_embeddings:
        checkpoint = _without_tied_head(checkpoint)
    card = read_card(folder) or Card(
        template=_STOCK_TEMPLATE,
        tile_px=int(config.vision_config.image_size[0]),
        tokens_per_tile=config.image_seq_length,
    )
    return NativeSource(folder, layout, config, checkpoint, card)


def _without_tied_head(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the second copy of a tied head."""
    head, embedding = "lm_head.weight", "model.language_model.embed_tokens.weight"
    if head not in checkpoint.specs:
        return checkpoint
    if not checkpoint.read(head).equal(checkpoint.read(embedding)):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json ties the head to the embedding, but their weights "
            f"differ; set tie_word_embeddings to false in config.json"
        )
    return checkpoint.without(head)
