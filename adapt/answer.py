"""A model that answers: records to prompts, prompts to batches, batches to greedy answers.

    record --encode_prompt--> prompt, padded on the left --generate--> tokens up to a stop token

An answer does not depend on the batch it was made in: padding is masked and positions count from
each prompt's own first token. Phi-3's long rope chooses its factors by the longest row of a batch,
so no batch holds rows of both sides of its switch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from adapt.errors import EnvironmentFault, RecordError, UsageError
from adapt.images import ImageError
from adapt.models.pixels import normalise
from adapt.reading_ahead import TileCache
from adapt.records import RecordLine
from adapt.tiling import Grid, Pixels, load_tiles, record_grids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from adapt.models.handle import ModelHandle


CACHE_BYTES = 256 * 2**20
"""Tiles kept for records that share a picture: 33 mosaics of DriveLM."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How pictures are cut, as in training."""

    max_tiles: int
    min_tiles: int = 1
    thumbnail: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """A record to answer.

    Args:
        index: Its place among the records to answer.
        record: The record.
        input_ids: Everything up to and with the header of the answer.
        grids: Of its pictures.
    """

    index: int
    record: RecordLine
    input_ids: list[int]
    grids: list[Grid]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a prompt."""

    text: str
    tokens: int
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """Prompts with their pictures, [tiles, 3, tile_px, tile_px] uint8 in the order of prompts."""

    prompts: Sequence[Prompt]
    tiles: Pixels | None


class Answerer:
    """A model with what it needs to answer records.

    Args:
        handle: Of the model.
        device: Where it runs: float32 on a CPU, bfloat16 on a GPU.
        tiling: As in training.
        max_new_tokens: Longest answer.
        root: Folder that image paths start at.
    """

    def __init__(
        self,
        handle: ModelHandle,
        device: torch.device,
        tiling: Tiling,
        *,
        max_new_tokens: int,
        root: Path,
    ) -> None:
        self._handle, self._device, self._tiling = handle, device, tiling
        self._max_new_tokens, self._root = max_new_tokens, root
        self._dtype = choose_dtype(device)
        self._model: Any = handle.load(self._dtype).eval().to(device)
        self._cache = TileCache(CACHE_BYTES)

    def prompt(self, index: int, record: RecordLine) -> Prompt:
        """Tokenise a record's prompt; its pictures stay closed.

        Raises:
            RecordError: It is too long for the model, or spells a token that stands for pictures.
        """
        limits = {"max_tiles": self._tiling.max_tiles, "min_tiles": self._tiling.min_tiles}
        grids = record_grids(record.width_list, record.height_list, record.task, **limits)
        tiles = [grid.pictures(thumbnail=self._tiling.thumbnail) for grid in grids]
        try:
            input_ids = self._handle.encode_prompt(record.conversations, tiles)
        except RecordError as error:
            raise RecordError(f"record {record.id}: {error}") from error
        most = self._handle.max_positions
        if most is not None and len(input_ids) + self._max_new_tokens > most:
            raise RecordError(
                f"record {record.id}: {len(input_ids)} tokens and up to {self._max_new_tokens} of "
                f"the answer are more than the model's {most}; lower --max-tiles or "
                f"--max-new-tokens"
            )
        return Prompt(index, record, input_ids, grids)

    def batches(self, prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
        """Cut prompts into batches; see `cut_batches`."""
        return cut_batches(
            prompts,
            size,
            rope_switch=self._handle.rope_switch,
            max_new_tokens=self._max_new_tokens,
        )

    def load(self, prompts: Sequence[Prompt]) -> LoadedBatch:
        """Open and cut the pictures of a batch.

        Raises:
            RecordError: A picture is missing, damaged, or of another size than its record says.
        """
        tiles = [picture for prompt in prompts for picture in self._pictures(prompt)]
        return LoadedBatch(prompts, np.concatenate(tiles) if tiles else None)

    def _pictures(self, prompt: Prompt) -> list[Pixels]:
        record = prompt.record
        sizes = zip(record.width_list, record.height_list, strict=True)
        try:
            return [
                self._picture(image, grid, size)
                for image, grid, size in zip(record.image, prompt.grids, sizes, strict=True)
            ]
        except (ImageError, RecordError) as error:
            raise RecordError(f"record {record.id}: {error}; mend it, and run again") from error

    def _picture(self, image: str, grid: Grid, size: tuple[int, int]) -> Pixels:
        thumbnail, tile_px = self._tiling.thumbnail, self._handle.tile_px

        def load() -> Pixels:
            path = self._root / image
            return load_tiles(path, grid, size=size, thumbnail=thumbnail, tile_px=tile_px)

        return self._cache.get((image, grid, size), load)

    def answer(self, batch: LoadedBatch) -> list[Answer]:
        """Answer a batch greedily.

        Raises:
            EnvironmentFault: The GPU's memory is too small for it.
        """
        stops = self._handle.stop_token_ids
        input_ids, mask = pad_left([prompt.input_ids for prompt in batch.prompts], fill=stops[0])
        try:
            with torch.inference_mode():
                generated: Tensor = self._model.generate(
                    input_ids=input_ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    generation_config=self._settings(stops),
                    **self._pixels(batch.tiles),
                )
        except torch.OutOfMemoryError as error:
            raise EnvironmentFault(
                f"{self._device}: out of memory with {len(batch.prompts)} records in a batch; "
                f"lower --batch-size or --max-tiles"
            ) from error
        new = generated[:, input_ids.shape[1] :].tolist()
        return [read_answer(self._handle.tokenizer, tokens, stops) for tokens in new]

    def _pixels(self, tiles: Pixels | None) -> dict[str, Tensor]:
        if tiles is None:
            return {}
        values = normalise(torch.from_numpy(tiles).to(self._device), self._dtype)
        return {"pixel_values": values}

    def _settings(self, stops: Sequence[int]) -> Any:
        import transformers

        # Nothing is taken over from the checkpoint: sampling settings there would be obeyed.
        return transformers.GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
        )


def cut_batches(
    prompts: Sequence[Prompt], size: int, *, rope_switch: int | None, max_new_tokens: int
) -> Iterator[list[Prompt]]:
    """Cut prompts into batches of like length, each on one side of a long rope's switch.

    A prompt whose answer may cross the switch shares a batch only with those that cross it at the
    same moment.

    Args:
        prompts: To answer, in any order.
        size: Most of a batch.
        rope_switch: Positions up to which the short factors hold; None: no long rope.
        max_new_tokens: Longest answer.
    """

    def side(prompt: Prompt) -> int:
        length = len(prompt.input_ids)
        if rope_switch is None or length + max_new_tokens <= rope_switch:
            return 0
        return length if length <= rope_switch else -1

    by_length = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    for _, together in groupby(by_length, key=side):
        alike = list(together)
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def read_answer(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], stops: Sequence[int]
) -> Answer:
    """Return what was spoken before the first stop token.

    Args:
        tokenizer: Of the model.
        tokens: All that was generated.
        stops: Ids that end an answer.
    """
    ends = [place for place, token in enumerate(tokens) if token in stops]
    spoken = tokens[: ends[0]] if ends else tokens
    # Tokens such as <box> are special to the tokenizer, and part of the answer.
    text = tokenizer.decode(spoken, skip_special_tokens=False)
    return Answer(str(text).strip(), len(spoken), "stop" if ends else "length")


def pad_left(rows: Sequence[Sequence[int]], *, fill: int) -> tuple[Tensor, Tensor]:
    """Return [rows, longest] int64 tokens, filled on the left, and their mask.

    >>> pad_left([[1, 2, 3], [4]], fill=0)[0].tolist()
    [[1, 2, 3], [0, 0, 4]]
    """
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, longest - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[number, longest - len(row) :] = 1
    return tokens, mask


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the number format that a model answers in: bfloat16 where it is fast."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def find_device(name: str | None) -> torch.device:
    """Return the device asked for; by default a GPU, if there is one.

    Raises:
        UsageError: It is no name of a device.
        EnvironmentFault: It is not on this machine.
    """
    has_gpu = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if has_gpu else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"--device {name}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and (not has_gpu or int(number or 0) >= torch.cuda.device_count()):
        raise EnvironmentFault(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            f"--device cpu runs without"
        )
    return torch.device(name)
