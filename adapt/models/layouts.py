"""Name maps between the original OpenGVLab layout and the native one of transformers.

A layout lists pairs: one original tensor and the native tensors it falls apart into. Read
forwards the list imports a checkpoint, read backwards it exports one, bit for bit:

    original (one tensor)                          native (one or several)
    language_model.model.layers.0.attention.wqkv   model.language_model.layers.0.self_attn.q_proj
                                                   ...k_proj, ...v_proj
    mlp1.1                                         model.multi_modal_projector.linear_1

Native names are those of the model in memory (`model.state_dict()`); `Layout.disk_name` gives the
name that `save_pretrained` writes. Mono-InternVL's layout is in `adapt.models.mono_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Shape = tuple[int, ...]


class Cut(Protocol):
    """How an original tensor falls apart into native ones, and comes together again."""

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the native tensors of an original one."""

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the original tensor of native ones."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the original shape of native shapes."""


@dataclass(frozen=True)
class Whole:
    """One tensor on both sides, unchanged."""

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor itself."""
        return [tensor]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the only part."""
        return parts[0]

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the only shape."""
        return shapes[0]


@dataclass(frozen=True)
class EqualRows:
    """Parts of equal height, one below the other (the vision tower's qkv)."""

    parts: int

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return `parts` tensors of [rows / parts, ...]."""
        return list(tensor.chunk(self.parts))

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [rows, ...]."""
        return torch.cat(list(parts))

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of the parts stacked."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True)
class GroupedRows:
    """InternLM2's wqkv: for each key-value head its queries, then one key, then one value.

    Rows are [kv_heads, queries + 2, head_dim]; the parts are q, k, v with heads in order.
    """

    kv_heads: int
    queries: int
    head_dim: int

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return q, k, v of an original [kv_heads * (queries + 2) * head_dim, ...]."""
        rest = tensor.shape[1:]
        grouped = tensor.reshape(self.kv_heads, self.queries + 2, self.head_dim, *rest)
        parts = (grouped[:, : self.queries], grouped[:, self.queries], grouped[:, self.queries + 1])
        return [part.reshape(-1, *rest) for part in parts]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the original tensor of q, k, v."""
        rest = parts[0].shape[1:]
        heads = [part.reshape(self.kv_heads, -1, self.head_dim, *rest) for part in parts]
        return torch.cat(heads, dim=1).reshape(-1, *rest)

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the original shape of q, k, v."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


WHOLE = Whole()


@dataclass(frozen=True)
class Pair:
    """One original tensor and the native tensors it falls apart into, in the cut's order."""

    original: str
    native: tuple[str, ...]
    cut: Cut = WHOLE


@dataclass(frozen=True)
class Layout:
    """Everything the bridge knows about one kind of checkpoint.

    Attributes:
        name: What messages call it, such as `internlm2`.
        architecture: The original `llm_config.architectures[0]`.
        pairs: Native config -> every pair of that size of model.
        import_config: (original config.json, image token id) -> native config.
        export_config: Native config -> original config.json, for models never imported.
        build: Native config -> model; under `torch.device("meta")` it costs nothing.
        disk_prefixes: (prefix in memory, prefix on disk); the first match counts.
    """

    name: str
    architecture: str
    pairs: Callable[[Any], list[Pair]]
    import_config: Callable[[dict[str, Any], int], Any]
    export_config: Callable[[Any], dict[str, Any]]
    build: Callable[[Any], Any]
    disk_prefixes: tuple[tuple[str, str], ...] = field(default=())

    def disk_name(self, name: str) -> str:
        """Return the name that `save_pretrained` gives a tensor of the model in memory."""
        return _replace_prefix(name, self.disk_prefixes)

    def memory_name(self, name: str) -> str:
        """Return the name in memory of a tensor on disk, whichever way it was saved."""
        return _replace_prefix(name, tuple((disk, memory) for memory, disk in self.disk_prefixes))


def _replace_prefix(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def same(original: str, native: str, leaves: Sequence[str] = ("weight",)) -> Iterator[Pair]:
    """Yield a pair per leaf (`weight`, `bias`) of two modules that hold the same tensors."""
    for leaf in leaves:
        yield Pair(f"{original}.{leaf}", (f"{native}.{leaf}",))
