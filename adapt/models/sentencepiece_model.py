"""Read a sentencepiece BPE model (`tokenizer.model`) and turn it into a fast tokenizer.

The file is one protobuf message; four of its fields matter, so that no protobuf library is needed:

    1 pieces[]    1 text, 2 score (float), 3 kind
    2 trainer     3 model kind (2: BPE), 24 white space as suffix, 35 byte fallback
    3 normalizer  2 compiled character map, 3 dummy prefix, 4 remove extra spaces, 5 escape spaces

Sentencepiece joins, again and again, the two neighbours whose joined piece scores best. The fast
tokenizer joins by a list of pairs: every way to cut a piece in two pieces, best score first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import CheckpointError
from adapt.jsonl import read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class PieceKind(IntEnum):
    """Kinds of pieces, as sentencepiece numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What matters of a sentencepiece BPE model.

    Attributes:
        pieces: The vocabulary, by id.
        byte_fallback: Whether an unknown character becomes its bytes.
        dummy_prefix: Whether text gets a space in front.
        character_map: Compiled normalisation; empty: none.
    """

    pieces: tuple[Piece, ...]
    byte_fallback: bool
    dummy_prefix: bool
    character_map: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        CheckpointError: It is not a sentencepiece BPE model, or has an option no InternVL uses.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(read_bytes(path)):
            if number == 1:
                pieces.append(_read_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a sentencepiece model ({error}); fetch it again"
        ) from error
    if not pieces or trainer.get(3) != _BPE:
        raise CheckpointError(f"{path}: expected a sentencepiece model of kind BPE")
    if normalizer.get(4, 1) or not normalizer.get(5, 1) or trainer.get(24):
        raise CheckpointError(
            f"{path}: it removes extra spaces, or does not escape them; no model of InternVL does, "
            f"and the fast tokenizer cannot: save it as tokenizer.json with transformers first"
        )
    character_map = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=tuple(pieces),
        byte_fallback=bool(trainer.get(35, 0)),
        dummy_prefix=bool(normalizer.get(3, 1)),
        character_map=character_map if isinstance(character_map, bytes) else b"",
    )


def convert_sentencepiece(
    model: SentencePieceModel,
    *,
    renamed: Mapping[int, str],
    prefix_once: bool,
    add_bos: bool,
) -> Tokenizer:
    """Return the fast tokenizer that gives the same ids.

    Args:
        model: The model.
        renamed: Texts of pieces that the folder calls otherwise (InternLM2 turns
            `[UNUSED_TOKEN_145]` into `<|im_end|>`), by id. The caller adds these as tokens, with
            their flags, as it does those with ids beyond the model.
        prefix_once: The dummy prefix goes before the whole text only, not before each stretch
            between special tokens.
        add_bos: Whether text begins with the begin token, if there is one.
    """
    from tokenizers import Tokenizer, models, processors

    names = [renamed.get(number, piece.text) for number, piece in enumerate(model.pieces)]
    vocabulary = {name: number for number, name in enumerate(names)}
    unknown = next((p.text for p in model.pieces if p.kind == PieceKind.UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(model, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    _set_spaces(tokenizer, model, prefix_once=prefix_once)
    _add_control_pieces(tokenizer, model, renamed)
    begin = tokenizer.token_to_id("<s>")
    if add_bos and begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", begin)]
        )
    return tokenizer


def _set_spaces(tokenizer: Tokenizer, model: SentencePieceModel, *, prefix_once: bool) -> None:
    """Write spaces as sentencepiece does on the way in, and take them back on the way out."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if prefix_once and model.dummy_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="first", split=False
        )
    else:
        if model.dummy_prefix:
            steps.append(normalizers.Prepend(SPACE))
        steps.append(normalizers.Replace(" ", SPACE))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        back.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(back)


def _add_control_pieces(
    tokenizer: Tokenizer, model: SentencePieceModel, renamed: Mapping[int, str]
) -> None:
    """Mark the pieces that stand for themselves whole; renamed ones get their flags later."""
    from tokenizers import AddedToken

    special = (PieceKind.UNKNOWN, PieceKind.CONTROL)
    entries = [
        AddedToken(piece.text, normalized=False, special=piece.kind in special)
        for number, piece in enumerate(model.pieces)
        if piece.kind in (*special, PieceKind.USER_DEFINED) and number not in renamed
    ]
    tokenizer.add_special_tokens([entry for entry in entries if entry.special])
    tokenizer.add_tokens([entry for entry in entries if not entry.special])


def _merges(model: SentencePieceModel, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every pair of pieces that joins into a piece, best score first."""
    ranked = []
    for number, piece in enumerate(model.pieces):
        if piece.kind != PieceKind.NORMAL or vocabulary.get(piece.text) != number:
            continue
        for cut in range(1, len(piece.text)):
            pair = piece.text[:cut], piece.text[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary:
                ranked.append((-piece.score, number, cut, pair))
    return [pair for *_, pair in sorted(ranked)]


def _read_piece(value: int | bytes) -> Piece:
    fields = dict(_fields(value))
    text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise TypeError("a piece is not text with a score")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, 1)))


def _fields(data: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protobuf message: numbers as int, all else as bytes."""
    if not isinstance(data, bytes):
        raise TypeError("a number where a message was expected")
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            number, place = _varint(data, place)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if place + length > len(data):
            raise ValueError(f"cut off at byte {len(data)}")
        yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return number, place
        shift += 7
