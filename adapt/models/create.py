"""Compose a model from parts, as both papers do, into a native folder ready for training.

    mini-internvl   vision tower + language model; the projector is fresh
    mono-internvl   InternLM2 alone; visual experts copied from its MLPs, patch embedding and
                    projector fresh

The special tokens (`<img>` ... `</box>`) are added to the tokenizer where it lacks them. Embeddings
and head get as many rows as the tokenizer has ids: spare rows go, as in the reference; a new
token's rows are the mean of all others, so that it starts as likely as the average word (the
reference does so for the head; its new embeddings are drawn at random).
Fresh weights are normal with deviation 0.02, biases zero; they depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from adapt.errors import CheckpointError, UsageError, nearest
from adapt.models.card import Card, write_card
from adapt.models.chat import ChatTemplate, load_template
from adapt.models.checkpoint_config import read_config
from adapt.models.config_maps import VISION_NAMES, checked_config, with_defaults
from adapt.models.conversion import convert_to_native
from adapt.models.known_layouts import layout_of_original
from adapt.models.mono_layout import ARCHITECTURE as MONO_ARCHITECTURE
from adapt.models.native_files import write_config, write_generation_config, write_processor
from adapt.models.original_forward import OriginalForward
from adapt.models.parts import Parts, Vocabulary, compose, vocabulary_rows
from adapt.models.presets import load_preset
from adapt.models.shards import DTYPES, open_checkpoint, write_checkpoint
from adapt.models.tokenizers import check_tokenizer, image_token_id, load_tokenizer, saving
from adapt.models.verify import Difference, Side, open_side, require_agreement
from adapt.new_folder import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MINI, MONO = "mini-internvl", "mono-internvl"
KINDS = (MINI, MONO)

# Presets of the papers' own models: special tokens, downsampling, size of the patch embedding.
_SIZES_OF = {MINI: "mini-internvl2-2b", MONO: "mono-internvl-2b"}


@dataclass(frozen=True)
class _Language:
    """The original class of a language model, and the template Mini-InternVL uses with it."""

    architecture: str
    template: str


_LANGUAGES = {
    "qwen2": _Language("Qwen2ForCausalLM", "Hermes-2"),
    "internlm2": _Language("InternLM2ForCausalLM", "internlm2-chat"),
    "phi3": _Language("Phi3ForCausalLM", "phi3-chat"),
}
_ORIGINAL_VISION, _NATIVE_VISION = "intern_vit_6b", "internvl_vision"


@dataclass(frozen=True)
class CreateOptions:
    """What to compose.

    Attributes:
        kind: One of KINDS.
        language: Folder of the language model: config.json, safetensors, tokenizer.
        out: Folder to write; must not exist, or be empty.
        vision: Folder of the vision tower, InternViT's own layout or transformers'; for MINI only.
        template: Chat template; None: the one Mini-InternVL uses with this language model.
        seed: Of the fresh weights.
        verify: Compare the logits of the parts with those of the folder written.
    """

    kind: str
    language: Path
    out: Path
    vision: Path | None = None
    template: str | None = None
    seed: int = 0
    verify: bool = True


@dataclass(frozen=True)
class CreateReport:
    """What was made.

    Attributes:
        out: Folder written.
        parameters: All of the model's.
        new_tokens: Special tokens that the tokenizer lacked.
        spare_rows: Rows of the embedding that no token had, dropped.
        difference: Of the logits of the parts and of the folder written; None: not compared.
    """

    out: Path
    parameters: int
    new_tokens: tuple[str, ...]
    spare_rows: int
    difference: Difference | None

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.parameters / 1e6:,.2f} M parameters, {len(self.new_tokens)} new "
            f"tokens, {self.spare_rows} spare embedding rows dropped; "
            f"{self.difference or 'not verified'}"
        )


def run_create(options: CreateOptions) -> CreateReport:
    """Compose a model and write it as a native checkpoint.

    Raises:
        UsageError: An unknown kind, or a vision tower where none belongs or is missing.
        CheckpointError: A part is damaged, of an unknown kind, or does not fit; nothing is written.
        CheckFailed: The folder computes something else than its parts; nothing is written.
    """
    _check(options)
    language = _language_fields(options)
    template = load_template(options.template or _LANGUAGES[language["model_type"]].template)
    tokenizer, new_tokens, vocabulary = _open_tokenizer(options, template)
    fields = _original_fields(options, language, template, vocabulary)
    layout = layout_of_original(fields)
    config = layout.import_config(fields, image_token_id(tokenizer))
    is_tied = bool(language.get("tie_word_embeddings", False))
    parts = _open_parts(options, is_tied, vocabulary)
    source = compose(layout, config, parts)
    conversion = convert_to_native(layout, config, source)
    with new_folder(options.out) as folder:
        write_checkpoint(folder, conversion.specs, conversion.tensors)
        write_config(folder, config, DTYPES[source.main_dtype])
        _write_texts(folder, config, tokenizer, template)
        difference = None
        if options.verify:
            token = config.image_token_id
            forward = OriginalForward(source, fields, token)
            difference = require_agreement(
                Side("the parts", config, source.main_dtype, forward),
                open_side(folder, token, name=str(options.out)),
            )
    return CreateReport(
        out=options.out,
        parameters=sum(prod(spec.shape) for spec in conversion.specs),
        new_tokens=new_tokens,
        spare_rows=max(0, vocabulary_rows(parts.language) - vocabulary.known),
        difference=difference,
    )


def _check(options: CreateOptions) -> None:
    if options.kind not in KINDS:
        raise UsageError(f"no kind of model is called {options.kind}{nearest(options.kind, KINDS)}")
    if options.kind == MINI and options.vision is None:
        raise UsageError(f"{MINI} needs a vision tower; give its folder: --vision DIR")
    if options.kind == MONO and options.vision is not None:
        raise UsageError(f"{MONO} has no vision tower; leave out --vision")


def _language_fields(options: CreateOptions) -> dict[str, Any]:
    """Return config.json of the language model, its rope as the original files spell it."""
    fields = read_config(options.language)
    known = ["internlm2"] if options.kind == MONO else sorted(_LANGUAGES)
    kind = str(fields.get("model_type"))
    if kind not in known:
        raise CheckpointError(
            f"{options.language / 'config.json'}: model_type is {kind}, expected "
            f"{' or '.join(known)}: the folder of a language model alone, in its own layout"
        )
    if fields.get("use_sliding_window"):
        raise CheckpointError(
            f"{options.language / 'config.json'}: use_sliding_window is on; packs of records need "
            f"full attention: take a language model without it"
        )
    rope = fields.pop("rope_parameters", None)
    if isinstance(rope, dict):
        # Saved by transformers 5, which has one field for both.
        fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
        kind = rope.pop("rope_type", "default")
        fields["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return fields


def _open_tokenizer(
    options: CreateOptions, template: ChatTemplate
) -> tuple[PreTrainedTokenizerFast, tuple[str, ...], Vocabulary]:
    """Return the language model's tokenizer with the special tokens, those new, and its ids."""
    tokenizer = load_tokenizer(options.language)
    known = _number_of_ids(tokenizer)
    wanted = load_preset(_SIZES_OF[options.kind]).tokens
    new = tuple(token for token in wanted if tokenizer.backend_tokenizer.token_to_id(token) is None)
    tokenizer.add_tokens(list(new), special_tokens=True)
    vocabulary = Vocabulary(known, _number_of_ids(tokenizer))
    try:
        check_tokenizer(tokenizer, template, vocabulary.size)
    except CheckpointError as error:
        raise CheckpointError(f"{options.language}: {error}") from error
    return tokenizer, new, vocabulary


def _number_of_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    return 1 + max(int(number) for number in tokenizer.get_vocab().values())


def _original_fields(
    options: CreateOptions,
    language: dict[str, Any],
    template: ChatTemplate,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Return config.json of the model as if it had been published in the original layout."""
    plain = _LANGUAGES[language["model_type"]].architecture
    architecture = MONO_ARCHITECTURE if options.kind == MONO else plain
    fields = {
        "model_type": "internvl_chat",
        "template": template.name,
        "downsample_ratio": load_preset(_SIZES_OF[options.kind]).downsample_ratio,
        "ps_version": "v2",
        "llm_config": {
            **language,
            "architectures": [architecture],
            "vocab_size": vocabulary.size,
            "tie_word_embeddings": False,
        },
        "vision_config": _vision_fields(options.vision),
    }
    return with_defaults(fields)


def _vision_fields(folder: Path | None) -> dict[str, Any]:
    """Return the original vision_config: of a folder, or Mono-InternVL's patch embedding."""
    if folder is None:
        native = InternVLVisionConfig(**load_preset(_SIZES_OF[MONO]).vision)
        return {**_as_original(native), "model_type": "intern_vit_patch"}
    fields = read_config(folder)
    kind = fields.get("model_type")
    if kind == _ORIGINAL_VISION:
        return fields
    if kind == _NATIVE_VISION:
        native = checked_config(InternVLVisionConfig.from_dict, config_dict=fields)
        return {**_as_original(native), "model_type": _ORIGINAL_VISION}
    raise CheckpointError(
        f"{folder / 'config.json'}: model_type is {kind}, expected {_ORIGINAL_VISION} (InternViT) "
        f"or {_NATIVE_VISION} (transformers): the folder of a vision tower alone"
    )


def _as_original(native: Any) -> dict[str, Any]:
    fields = {old: getattr(native, new) for old, new in VISION_NAMES.items()}
    return {**fields, **{side: fields[side][0] for side in ("image_size", "patch_size")}}


def _open_parts(options: CreateOptions, is_tied: bool, vocabulary: Vocabulary) -> Parts:
    vision = options.vision
    kind = read_config(vision)["model_type"] if vision else None
    return Parts(
        language=open_checkpoint(options.language),
        vision=open_checkpoint(vision) if vision else None,
        vision_is_native=kind == _NATIVE_VISION,
        is_tied=is_tied,
        vocabulary=vocabulary,
        seed=options.seed,
    )


def _write_texts(
    folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate
) -> None:
    """Write what stands beside weights and config: tokenizer, processor, `adapt.json`."""
    # Read back: only a tokenizer that is loaded with its image tokens names them for transformers.
    with saving(folder):
        tokenizer.save_pretrained(folder)
    saved = load_tokenizer(folder)
    write_generation_config(folder, config, saved, template)
    write_processor(folder, config, saved, template)
    card = Card(
        template=template.name,
        tile_px=int(config.vision_config.image_size[0]),
        tokens_per_tile=config.image_seq_length,
    )
    write_card(folder, card)
