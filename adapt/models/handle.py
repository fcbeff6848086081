"""A model in hand: its config, tokenizer and chat template, and its weights when asked for.

    handle = open_model("tiny")                  preset, run folder, checkpoint folder or hub id
    handle.encode(conversations, tiles)          tokens and labels; no torch
    handle.load(torch.bfloat16)                  the weights

Everything that a step must know about a model comes from here, so that training, prediction and
evaluation see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import CheckpointError, RecordError
from adapt.models import chat
from adapt.models.card import Card, read_card, write_card
from adapt.models.chat import ChatTemplate, Sample, load_template
from adapt.models.checkpoint_config import naming, native_config, read_config
from adapt.models.locate import locate
from adapt.models.presets import Preset, load_preset, model_class, preset_names
from adapt.models.tokenizers import (
    check_tokenizer,
    image_token_id,
    load_tokenizer,
    stop_token_ids,
)
from adapt.records import Message

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["ModelHandle", "Sample", "open_model"]


@dataclass(frozen=True)
class ModelHandle:
    """A model opened by `open_model`; made once, read everywhere.

    Attributes:
        name: What it was asked for by.
        architecture: `internvl` or `mono`.
        preset: What it comes from, None for a checkpoint nobody named.
        folder: Its native checkpoint; None: random weights from a seed (`tiny`).
        tokenizer_folder: Where its tokenizer is.
        template: Its chat template.
    """

    name: str
    architecture: str
    preset: Preset | None
    folder: Path | None
    tokenizer_folder: Path
    template: ChatTemplate

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, checked against the template and the embedding."""
        with naming(self.tokenizer_folder):
            tokenizer = load_tokenizer(self.tokenizer_folder)
            check_tokenizer(tokenizer, self.template, self.vocab_size)
        return tokenizer

    def config(self) -> PretrainedConfig:
        """Return a fresh transformers config.

        Raises:
            CheckpointError: transformers refuses the folder's config.json.
        """
        if self.folder is not None:
            with naming(self.folder):
                return native_config(read_config(self.folder))
        if self.preset is None:
            raise CheckpointError(f"{self.name}: neither a folder nor a preset")
        # Not through self.tokenizer: that one is checked against this config.
        return self.preset.config(image_token_id(load_tokenizer(self.tokenizer_folder)))

    @cached_property
    def _config(self) -> PretrainedConfig:
        return self.config()

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return int(self._config.vision_config.image_size[0])

    @property
    def tokens_per_tile(self) -> int:
        """Tokens a tile becomes."""
        patches = self.tile_px // int(self._config.vision_config.patch_size[0])
        side: int = round(patches * self._config.downsample_ratio)
        return side * side

    @property
    def image_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`, the same in config and tokenizer."""
        found = image_token_id(self.tokenizer)
        if found != self._config.image_token_id:
            raise CheckpointError(
                f"{self.name}: <IMG_CONTEXT> is {found} in the tokenizer and "
                f"{self._config.image_token_id} in config.json; they are of different models"
            )
        return found

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self._config.text_config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """Longest record of a model whose dynamic rope changes beyond it; None: no such limit."""
        text = self._config.text_config
        rope = text.rope_parameters or {}
        return int(text.max_position_embeddings) if rope.get("rope_type") == "dynamic" else None

    @property
    def rope_switch(self) -> int | None:
        """Positions up to which Phi-3's long rope uses its short factors; None: no long rope."""
        rope = self._config.text_config.rope_parameters or {}
        if rope.get("rope_type") != "longrope":
            return None
        return int(rope["original_max_position_embeddings"])

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        return stop_token_ids(self.tokenizer, self.template)

    def load(self, dtype: torch.dtype, *, seed: int = 0) -> PreTrainedModel:
        """Return the model on the CPU; every weight from the folder, or all from the seed.

        Raises:
            CheckpointError: A weight is missing, unknown or of another shape.
        """
        import torch
        from safetensors import SafetensorError

        kind = model_class(self.architecture)
        if self.folder is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return kind(self.config()).to(dtype)
        try:
            model, report = kind.from_pretrained(
                self.folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self.folder}: weights cannot be loaded: {first}") from error
        wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
        if wrong:
            raise CheckpointError(
                f"{self.folder}: weights do not fit config.json: "
                + "; ".join(f"{what} {', '.join(names[:5])}" for what, names in wrong.items())
            )
        return model

    def encode(self, conversations: Sequence[Message], tiles_per_image: Sequence[int]) -> Sample:
        """Return the tokens of a record and what is learned of them.

        Args:
            conversations: Its turns.
            tiles_per_image: Tiles of each picture, thumbnail included.

        Raises:
            RecordError: Pictures and `<image>` do not match, or a turn spells `<IMG_CONTEXT>`.
        """
        return self.encode_many([(conversations, tiles_per_image)])[0]

    def encode_many(
        self, records: Sequence[tuple[Sequence[Message], Sequence[int]]]
    ) -> list[Sample]:
        """Encode many records at once, on all cores; see `encode`."""
        rendered = []
        for index, (conversations, tiles) in enumerate(records):
            try:
                rendered.append(chat.render(self.template, conversations, self._tokens(tiles)))
            except RecordError as error:
                if len(records) == 1:
                    raise
                raise RecordError(f"records[{index}]: {error}") from error
        return chat.encode_rendered(self.tokenizer, rendered)

    def encode_prompt(
        self, conversations: Sequence[Message], tiles_per_image: Sequence[int]
    ) -> list[int]:
        """Return the tokens up to and with the header of the last answer; see `encode`."""
        tokens = self._tokens(tiles_per_image)
        rendered = chat.render_prompt(self.template, conversations, tokens)
        return chat.encode_rendered(self.tokenizer, [rendered])[0].input_ids

    def card(self) -> Card:
        """Return what `adapt.json` says of this model."""
        return Card(
            template=self.template.name,
            tile_px=self.tile_px,
            tokens_per_tile=self.tokens_per_tile,
            preset=self.preset.name if self.preset else None,
        )

    def save_extras(self, folder: Path) -> None:
        """Write what a checkpoint needs beside weights and config.json: see `native_files`."""
        from adapt.models import native_files

        native_files.write_processor(folder, self._config, self.tokenizer, self.template)
        native_files.write_generation_config(folder, self._config, self.tokenizer, self.template)
        if self.folder is not None and not (folder / native_files.ORIGINAL_FILES).exists():
            native_files.carry_original_files(self.folder, folder)
        write_card(folder, self.card())

    def _tokens(self, tiles_per_image: Sequence[int]) -> list[int]:
        return [tiles * self.tokens_per_tile for tiles in tiles_per_image]


def open_model(name_or_path: str, *, workspace: Path = Path(".")) -> ModelHandle:
    """Find a model and read what it is; weights stay where they are.

    Args:
        name_or_path: A checkpoint or run folder, a preset, or a hub id.
        workspace: Folder whose `models/NAME` is looked at before the hub.

    Raises:
        UsageError: No preset has this name, and no folder.
        CheckpointError: The folder is not a checkpoint of InternVL.
        EnvironmentFault: It is nowhere on this machine, and the hub is out of reach.
    """
    found = locate(name_or_path, workspace)
    if found.folder is None and found.preset is not None:
        return _shipped(name_or_path, found.preset)
    assert found.folder is not None
    card = read_card(found.folder)
    preset = found.preset
    if preset is None and card is not None and card.preset in preset_names():
        preset = load_preset(card.preset)
    template = card.template if card else preset.template if preset else _guess(found.folder)
    return ModelHandle(
        name=name_or_path,
        architecture=found.architecture,
        preset=preset,
        folder=found.folder,
        tokenizer_folder=found.folder,
        template=load_template(template),
    )


def _shipped(name: str, preset: Preset) -> ModelHandle:
    folder = preset.tokenizer_folder
    assert folder is not None
    return ModelHandle(
        name=name,
        architecture=preset.architecture,
        preset=preset,
        folder=None,
        tokenizer_folder=folder,
        template=load_template(preset.template),
    )


def _guess(folder: Path) -> str:
    """Return the template of a stock native checkpoint, which does not say."""
    backend = load_tokenizer(folder).backend_tokenizer
    if backend.token_to_id("<|im_start|>") is not None:
        # The only native checkpoints not made by adapt are InternVL2.5 and later.
        return "internvl2_5"
    if backend.token_to_id("<|assistant|>") is not None:
        return "phi3-chat"
    raise CheckpointError(
        f"{folder}: no adapt.json says which chat template it was trained with, and its tokenizer "
        f"has the tokens of none; write one: " + '{"template": ..., "tile_px": ...}'
    )
