"""`adapt.json`: what a native checkpoint folder says of itself beyond transformers' config.json.

    {"format": 1, "preset": "mini-internvl2-1b", "template": "Hermes-2",
     "tile_px": 448, "tokens_per_tile": 256}

Without it a folder still opens; then the chat template is guessed from the tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from adapt.errors import CheckpointError
from adapt.jsonl import read_bytes, write_json

CARD_FILE = "adapt.json"
FORMAT = 1


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What `adapt.json` holds; keys it does not know are passed over.

    Attributes:
        template: Chat template the weights were trained with.
        tile_px: Side of a tile in pixels.
        tokens_per_tile: Tokens a tile becomes.
        preset: Preset it comes from, if any.
        format: Version of this file.
    """

    template: str
    tile_px: int
    tokens_per_tile: int
    preset: str | None = None
    format: int = FORMAT


def read_card(folder: Path) -> Card | None:
    """Return the card of a checkpoint folder, None when it has none.

    Raises:
        CheckpointError: The card is malformed, or of a later format.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return None
    try:
        card = msgspec.json.decode(read_bytes(path), type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}; remove it, or import the model again") from error
    if card.format != FORMAT:
        raise CheckpointError(
            f"{path}: format {card.format}, expected {FORMAT}; update adapt, or import again"
        )
    return card


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a checkpoint folder."""
    write_json(folder / CARD_FILE, msgspec.to_builtins(card))
