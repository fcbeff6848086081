"""Read and write checkpoints of safetensors files one tensor at a time.

    model.safetensors                                   or
    model-00001-of-00002.safetensors, ...               and model.safetensors.index.json

A file is 8 bytes (length of the header), the header (JSON: name -> dtype, shape, offsets), the
tensors. Reading maps a file only while one tensor of it is fetched; writing knows every header
beforehand and appends the tensors: memory stays near the largest tensor, whatever the checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adapt.errors import CheckpointError, some
from adapt.jsonl import disk_fault, read_json, write_json
from adapt.progress import Advance, progress

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 2 * 1024**3
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# In the order in which safetensors lays dtypes out in a file: wide ones first, so that all stay
# aligned.
DTYPES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ORDER = {name: place for place, name in enumerate(DTYPES)}
_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (as safetensors spells it, such as `BF16`) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        itemsize: int = DTYPES[self.dtype].itemsize
        return prod(self.shape) * itemsize

    @property
    def place(self) -> tuple[int, str]:
        """Where safetensors itself would put it in a file."""
        return (_ORDER[self.dtype], self.name)


class Checkpoint:
    """The tensors of a folder, read one at a time.

    Attributes:
        folder: Where the files are.
        files: Tensor name -> its file.
        specs: Tensor name -> dtype and shape.
    """

    def __init__(self, folder: Path, stored: dict[str, tuple[Path, TensorSpec]]) -> None:
        """Take each name with its file and what the file says of it, under the file's own name."""
        self.folder = folder
        self.files = {name: path for name, (path, _) in stored.items()}
        self.specs = {
            name: TensorSpec(name, spec.dtype, spec.shape) for name, (_, spec) in stored.items()
        }
        self._stored = stored

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor; its file stays mapped only as long as the tensor lives."""
        path, spec = self._stored[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(spec.name)

    def row_blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """Yield a tensor `rows` rows at a time; no more of it is mapped."""
        path, spec = self._stored[name]
        for start in range(0, spec.shape[0], rows):
            with safe_open(path, framework="pt") as file:
                yield file.get_slice(spec.name)[start : start + rows]

    def renamed(self, rename: Callable[[str], str]) -> Checkpoint:
        """Return the same tensors under other names.

        Raises:
            CheckpointError: Two of them would have the same name.
        """
        renamed: dict[str, tuple[Path, TensorSpec]] = {}
        for name, stored in self._stored.items():
            new = rename(name)
            if new in renamed:
                raise CheckpointError(
                    f"{self.folder}: {name} and {renamed[new][1].name} are two names of one "
                    f"tensor; files of two checkpoints may be mixed: fetch them again"
                )
            renamed[new] = stored
        return Checkpoint(self.folder, renamed)

    def without(self, dropped: str) -> Checkpoint:
        """Return the same tensors but one."""
        stored = {name: entry for name, entry in self._stored.items() if name != dropped}
        return Checkpoint(self.folder, stored)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.num_bytes for spec in self.specs.values())

    @property
    def main_dtype(self) -> str:
        """The dtype that most bytes have, as safetensors spells it."""
        weights: Counter[str] = Counter()
        for spec in self.specs.values():
            weights[spec.dtype] += spec.num_bytes
        return max(sorted(weights), key=weights.__getitem__)


def open_checkpoint(folder: Path) -> Checkpoint:
    """List the tensors of a folder of safetensors files; no tensor is read.

    Raises:
        CheckpointError: No safetensors files (pickles are refused), a shard is missing, damaged, or
            at odds with the index, or two shards hold the same tensor.
    """
    checkpoint = _open_files(folder, _shard_files(folder))
    _compare_with_index(folder, checkpoint.files)
    return checkpoint


def open_file(path: Path) -> Checkpoint:
    """List the tensors of one safetensors file.

    Raises:
        CheckpointError: It is damaged.
    """
    return _open_files(path.parent, [path])


def _open_files(folder: Path, paths: list[Path]) -> Checkpoint:
    stored: dict[str, tuple[Path, TensorSpec]] = {}
    for path in paths:
        for spec in _read_header(path):
            if spec.name in stored:
                raise CheckpointError(
                    f"{path}: holds {spec.name}, which {stored[spec.name][0].name} holds too; "
                    f"remove the file that does not belong to this checkpoint"
                )
            stored[spec.name] = path, spec
    return Checkpoint(folder, stored)


def _shard_files(folder: Path) -> list[Path]:
    """Return the files of the weights; other safetensors files may lie beside them."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder, expected a checkpoint")
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.exists():
        raise CheckpointError(
            f"{folder}: has {SINGLE} and {INDEX}; one of them is left over: remove the stale one"
        )
    if single.is_file():
        return [single]
    if index.exists():
        found = [folder / name for name in sorted(set(_weight_map(index).values()))]
    else:
        found = _numbered_files(folder)
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(found)} shards are missing: {some(missing)}; "
            f"fetch them again"
        )
    if not found:
        raise CheckpointError(_no_safetensors(folder))
    return found


def _numbered_files(folder: Path) -> list[Path]:
    """Return `X-00001-of-0000N.safetensors` and all its sisters, present or not, without an index.

    Raises:
        CheckpointError: There are several sets.
    """
    found = [(path, _NUMBERED.fullmatch(path.name)) for path in folder.glob("*.safetensors")]
    sets = {(match[1], int(match[2])) for _, match in found if match}
    if len(sets) > 1:
        raise CheckpointError(
            f"{folder}: has several sets of shards and no {INDEX} that says which counts; "
            f"fetch the index"
        )
    return [
        folder / f"{stem}-{number:05}-of-{total:05}.safetensors"
        for stem, total in sets
        for number in range(1, total + 1)
    ]


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map (tensor -> file); fetch the file again")
    if any(Path(str(name)).name != name for name in weight_map.values()):
        raise CheckpointError(f"{index}: names files outside its folder; expected plain file names")
    return weight_map


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder / pickles[0]}: is a pickle, and loading a pickle can run any code; expected "
            f"safetensors: take the repository's safetensors revision, or convert it where you "
            f"trust it"
        )
    return f"{folder}: has no *.safetensors files; expected {SINGLE}, or shards with {INDEX}"


def _read_header(path: Path) -> list[TensorSpec]:
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            slices = [(name, file.get_slice(name)) for name in names]
            specs = [
                TensorSpec(name, view.get_dtype(), tuple(view.get_shape())) for name, view in slices
            ]
    except (SafetensorError, OSError) as error:
        hint = _pointer_hint(path) or "it may be cut off: fetch it again"
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); {hint}"
        ) from error
    for spec in specs:
        if spec.dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: {spec.name} has dtype {spec.dtype}, expected one of {', '.join(DTYPES)}; "
                f"quantised checkpoints cannot be converted"
            )
    return specs


def _pointer_hint(path: Path) -> str:
    with path.open("rb") as file:
        is_pointer = file.read(20).startswith(b"version https://git")
    return "it is a Git LFS pointer: run git lfs pull" if is_pointer else ""


def _compare_with_index(folder: Path, files: dict[str, Path]) -> None:
    index = folder / INDEX
    if not index.exists():
        return
    listed = _weight_map(index)
    found = {name: path.name for name, path in files.items()}
    if listed == found:
        return
    wrong = sorted(set(listed.items()) ^ set(found.items()))
    names = list(dict.fromkeys(name for name, _ in wrong))
    raise CheckpointError(
        f"{index}: disagrees with its shards on {len(names)} tensors ({some(names)}); "
        f"files of two checkpoints may be mixed: fetch them again"
    )


def write_checkpoint(
    folder: Path,
    specs: list[TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Write tensors as they come into safetensors files; return the file names.

    Args:
        folder: Existing folder.
        specs: Every tensor, in the order of `tensors`; sorted by `TensorSpec.place`.
        tensors: (name, tensor) in that order.
        max_shard_bytes: A file holds no more, unless one tensor alone does.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    shards = _group(specs, max_shard_bytes)
    names = _file_names(len(shards))
    stream = iter(tensors)
    with progress("writing", len(specs), "tensors") as advance:
        for name, shard in zip(names, shards, strict=True):
            try:
                _write_shard(folder / name, shard, stream, advance)
            except OSError as error:
                raise disk_fault(error, folder / name) from error
    if len(shards) > 1:
        _write_index(folder, names, shards)
    return names


def _group(specs: list[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_shard(
    path: Path,
    specs: list[TensorSpec],
    stream: Iterator[tuple[str, torch.Tensor]],
    advance: Advance,
) -> None:
    with path.open("xb") as file:
        file.write(_header(specs))
        for spec in specs:
            name, tensor = next(stream)
            found = TensorSpec(name, spec.dtype, tuple(tensor.shape))
            assert (found, tensor.dtype) == (spec, DTYPES[spec.dtype]), (found, tensor.dtype, spec)
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(memoryview(flat.numpy()))
            advance()
        file.flush()
        os.fsync(file.fileno())


def _header(specs: list[TensorSpec]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        content[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_index(folder: Path, names: list[str], shards: list[list[TensorSpec]]) -> None:
    weight_map = {
        spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard
    }
    total = sum(spec.num_bytes for shard in shards for spec in shard)
    content = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(folder / INDEX, content)
