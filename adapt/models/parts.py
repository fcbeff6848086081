"""Parts of a model as one checkpoint in the original layout, without writing it.

    language model folder (Qwen2, InternLM2, Phi-3)     language_model.*
        its vocabulary, cut or grown to the tokenizer   embeddings and head
        its MLPs once more (Mono-InternVL)              ...feed_forward_ve.*
    vision tower folder (InternViT, or transformers')   vision_model.*
    drawn from the seed                                 mlp1.*, Mono-InternVL's patch embedding

The result reads like any other original checkpoint, a tensor at a time: the bridge converts it,
checks it and compares it as it does a downloaded one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLVisionModel

from adapt.errors import CheckpointError
from adapt.models.conversion import native_shapes, original_shapes, require_tensors
from adapt.models.layouts import Layout, Pair, Shape
from adapt.models.name_maps import vision_pairs
from adapt.models.shards import DTYPES, Checkpoint, TensorSpec

INITIALIZER_RANGE = 0.02
_VISION, _LANGUAGE = "vision_model.", "language_model."
_NATIVE_VISION = "model.vision_tower."
_PROJECTOR_NORM = "mlp1.0.weight"
_TIED_TO = {
    "language_model.lm_head.weight": "language_model.model.embed_tokens.weight",
    "language_model.output.weight": "language_model.model.tok_embeddings.weight",
}
_EMBEDDINGS = set(_TIED_TO.values())
_VOCABULARY = _EMBEDDINGS | _TIED_TO.keys()
_MEAN_ROWS = 8192


@dataclass(frozen=True)
class Vocabulary:
    """How the rows of embeddings and head change.

    Attributes:
        known: Ids the language model's own tokenizer has; these rows are kept.
        size: Ids after the special tokens were added; the rows between are the mean of the kept.
    """

    known: int
    size: int


@dataclass(frozen=True)
class Parts:
    """Where the tensors come from.

    Attributes:
        language: Language model, under its own names.
        vision: Vision tower, under its own names; None for Mono-InternVL.
        vision_is_native: Whether that is transformers' InternVLVisionModel.
        is_tied: Whether the language model's head is its embedding matrix.
        vocabulary: How the vocabulary changes.
        seed: Of everything drawn.
    """

    language: Checkpoint
    vision: Checkpoint | None
    vision_is_native: bool
    is_tied: bool
    vocabulary: Vocabulary
    seed: int


Readers = dict[str, Callable[[], Tensor]]


class ComposedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are made when they are read."""

    def __init__(self, like: Checkpoint, shapes: dict[str, Shape], readers: Readers) -> None:
        """Take what makes each tensor; folder and dtype are those of `like`."""
        super().__init__(like.folder, {})
        self.specs = {
            name: TensorSpec(name, like.main_dtype, shape) for name, shape in shapes.items()
        }
        self._dtype = DTYPES[like.main_dtype]
        self._readers = readers

    def read(self, name: str) -> Tensor:
        """Return one tensor, the same at every call."""
        return self._readers[name]().to(self._dtype)

    def row_blocks(self, name: str, rows: int) -> Iterator[Tensor]:
        """Yield a tensor `rows` rows at a time; all of it is made at once."""
        yield from self.read(name).split(rows)


def vocabulary_rows(language: Checkpoint) -> int:
    """Return how many rows the embeddings of a language model have."""
    rows = {
        spec.shape[0] for name, spec in language.specs.items() if _LANGUAGE + name in _EMBEDDINGS
    }
    return max(rows)


def compose(layout: Layout, config: Any, parts: Parts) -> ComposedCheckpoint:
    """Return the parts as one checkpoint in the original layout.

    Args:
        layout: Of the model to make.
        config: Its native config, `vocab_size` that of `parts.vocabulary`.
        parts: What it is made of.

    Raises:
        CheckpointError: A part lacks tensors, has some left over or of another shape.
    """
    pairs = layout.pairs(config)
    expected = original_shapes(pairs, native_shapes(layout, config, pairs))
    readers = {**_language_readers(parts, expected), **_vision_readers(parts, expected, config)}
    for name in expected.keys() - readers.keys():
        readers[name] = partial(_fresh, name, expected[name], parts.seed)
    return ComposedCheckpoint(parts.language, expected, readers)


def _language_readers(parts: Parts, expected: dict[str, Shape]) -> Readers:
    source = parts.language.renamed(lambda name: _LANGUAGE + name)
    origins = {
        name: _origin(name, source, parts.is_tied)
        for name in expected
        if name.startswith(_LANGUAGE)
    }
    # Old InternLM2 files hold rope frequencies, which follow from the config.
    buffers = {name for name in source.specs if name.endswith(".rotary_emb.inv_freq")}
    needed = {name: source.specs[name].shape for name in buffers}
    for name, origin in origins.items():
        needed[origin] = expected[name]
        if name in _VOCABULARY and origin in source.specs:
            rows = source.specs[origin].shape[0]
            _require_rows(source, origin, rows, parts.vocabulary)
            needed[origin] = (rows, *expected[name][1:])
    require_tensors(source, needed)
    return {
        name: partial(_resized, source, origin, parts.vocabulary)
        if name in _VOCABULARY
        else partial(source.read, origin)
        for name, origin in origins.items()
    }


def _origin(name: str, source: Checkpoint, is_tied: bool) -> str:
    """Return the source tensor that a tensor of the language model starts as."""
    if ".feed_forward_ve." in name:
        return name.replace(".feed_forward_ve.", ".feed_forward.")
    if is_tied and name in _TIED_TO and name not in source.specs:
        return _TIED_TO[name]
    return name


def _require_rows(source: Checkpoint, name: str, rows: int, vocabulary: Vocabulary) -> None:
    if rows < vocabulary.known:
        raise CheckpointError(
            f"{source.folder}: {name.removeprefix(_LANGUAGE)} has {rows} rows, its tokenizer ids "
            f"up to {vocabulary.known - 1}; they are of different models"
        )


def _resized(source: Checkpoint, name: str, vocabulary: Vocabulary) -> Tensor:
    """Keep the rows of known words, drop spare ones, give each new word their mean."""
    known = source.read(name)[: vocabulary.known]
    added = vocabulary.size - vocabulary.known
    if not added:
        return known
    # In float64 and a block at a time: exact enough for any dtype, and no second whole matrix.
    total = sum(block.double().sum(0) for block in known.split(_MEAN_ROWS))
    mean = (total / len(known)).to(known.dtype)
    return torch.cat((known, mean.expand(added, -1)))


def _vision_readers(parts: Parts, expected: dict[str, Shape], config: Any) -> Readers:
    if parts.vision is None:
        return {}
    if not parts.vision_is_native:
        source = parts.vision.renamed(lambda name: _VISION + name)
        wanted = {name: shape for name, shape in expected.items() if name.startswith(_VISION)}
        require_tensors(source, wanted)
        return {name: partial(source.read, name) for name in wanted}
    source = parts.vision.renamed(lambda name: _NATIVE_VISION + name)
    pairs = list(vision_pairs(config.vision_config))
    with torch.device("meta"):
        tower = InternVLVisionModel(config.vision_config)
    require_tensors(
        source,
        {_NATIVE_VISION + name: tuple(value.shape) for name, value in tower.state_dict().items()},
    )
    return {pair.original: partial(_joined, source, pair) for pair in pairs}


def _joined(source: Checkpoint, pair: Pair) -> Tensor:
    return pair.cut.join([source.read(name) for name in pair.native])


def _fresh(name: str, shape: Shape, seed: int) -> Tensor:
    """Draw a tensor that no part has; its name and the seed decide, not the order of reading."""
    if name.endswith((".bias", ".class_embedding")):
        return torch.zeros(shape)
    if name == _PROJECTOR_NORM:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * INITIALIZER_RANGE
