"""Load the tokenizer of a checkpoint folder, whatever files it comes as, without remote code.

    tokenizer.json              read as it is
    vocab.json + merges.txt     Qwen2's byte-level BPE (InternVL2-1B)
    tokenizer.model             sentencepiece BPE (InternLM2, Phi-3), converted

Beside them tokenizer_config.json, special_tokens_map.json and added_tokens.json name the special
tokens. Each gives a `PreTrainedTokenizerFast` that saves to tokenizer.json, so that a checkpoint
imported once loads anywhere. Ids are read from these files, never assumed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.errors import CheckpointError, SourceError
from adapt.jsonl import disk_fault, read_bytes, read_json
from adapt.models.chat import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, ChatTemplate
from adapt.models.sentencepiece_model import convert_sentencepiece, read_sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
# As in Qwen2's own tokenizer.json: contractions, words, single digits, punctuation, white space.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside the vocabulary say.

    Attributes:
        roles: `bos_token`, `eos_token`, `unk_token`, `pad_token` to their text.
        added: Added tokens by id: `content`, and flags where the folder gives them.
        options: tokenizer_config.json as it is.
    """

    roles: Mapping[str, str]
    added: Mapping[int, Mapping[str, Any]]
    options: Mapping[str, Any]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder, its image tokens named for transformers' processor.

    Raises:
        CheckpointError: There is none, a file is damaged, or an added token cannot have the id
            that the folder gives it.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        settings = read_settings(folder)
        backend = _read_backend(folder, settings)
    except SourceError as error:
        raise CheckpointError(f"{error}; fetch the tokenizer of this model again") from error
    _add_tokens(backend, settings.added, folder)
    options: dict[str, Any] = {
        role: text for role, text in settings.roles.items() if backend.token_to_id(text) is not None
    }
    if "add_bos_token" in settings.options and "bos_token" in options:
        options["add_bos_token"] = bool(settings.options["add_bos_token"])
    if isinstance(longest := settings.options.get("model_max_length"), int) and longest < 2**63:
        options["model_max_length"] = longest
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=_processor_tokens(backend),
        **options,
    )


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has the files of a tokenizer."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")) or all(
        (folder / name).exists() for name in ("vocab.json", "merges.txt")
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a token that must be there as one token.

    Raises:
        CheckpointError: It is not.
    """
    found = tokenizer.backend_tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(
            f"the tokenizer has no token {token}; a model that was made for pictures has it: "
            f"take the tokenizer of that model, or adapt models create"
        )
    return int(found)


def image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of `<IMG_CONTEXT>`; see `token_id`."""
    return token_id(tokenizer, IMAGE_CONTEXT)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, vocab_size: int
) -> None:
    """Make sure that a tokenizer fits a chat template and an embedding.

    Args:
        tokenizer: Of the checkpoint.
        template: Whose `end` and image tokens must be single tokens.
        vocab_size: Rows of the embedding.

    Raises:
        CheckpointError: A token is missing, or an id lies beyond the embedding.
    """
    for token in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END, template.end):
        token_id(tokenizer, token)
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise CheckpointError(
            f"the tokenizer has ids up to {largest} ({token}), the embedding {vocab_size} rows; "
            f"they are of different models: put the checkpoint's own tokenizer beside it"
        )


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a tokenizer begins every text with its BOS token."""
    return bool(tokenizer.bos_token) and tokenizer("").input_ids == [tokenizer.bos_token_id]


def stop_token_ids(tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> list[int]:
    """Return the ids that end an answer: those of the template's stop tokens that exist."""
    ids = (tokenizer.backend_tokenizer.token_to_id(token) for token in template.stop)
    return [number for number in ids if number is not None]


def read_settings(folder: Path) -> TokenizerSettings:
    """Read tokenizer_config.json, special_tokens_map.json and added_tokens.json, those there are.

    Raises:
        CheckpointError: One of them has not the form expected.
        SourceError: One of them is not JSON.
    """
    options, special, added_ids = (
        _read_object(folder / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    roles = {}
    for role in _ROLES:
        value = options.get(role, special.get(role))
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None:
            roles[role] = str(value)
    try:
        added = _added_tokens(added_ids, options.get("added_tokens_decoder") or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: tokenizer_config.json or added_tokens.json lists added tokens that have no "
            f"id or no content; fetch the tokenizer of this model again"
        ) from error
    return TokenizerSettings(roles, added, options)


def _added_tokens(
    ids: Mapping[str, Any], decoder: Mapping[str, Mapping[str, Any]]
) -> dict[int, Mapping[str, Any]]:
    """Return added tokens by id: of added_tokens.json, then of tokenizer_config.json."""
    by_id = {int(number): {"content": text} for text, number in ids.items()}
    described = {
        int(number): {**token, "content": str(token["content"])}
        for number, token in decoder.items()
    }
    return {**by_id, **described}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def _read_backend(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    from tokenizers import Tokenizer

    if (path := folder / "tokenizer.json").exists():
        if "model" not in _read_object(path):
            raise CheckpointError(f"{path}: no `model` in it; it is not a tokenizer")
        with _refusing(path):
            return Tokenizer.from_file(str(path))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _read_qwen2(folder, settings)
    if (path := folder / "tokenizer.model").exists():
        model = read_sentencepiece(path)
        return convert_sentencepiece(
            model,
            renamed={number: str(token["content"]) for number, token in settings.added.items()},
            # transformers' Llama class of our day puts a space before the text once, the older
            # ones before every stretch of text between special tokens.
            prefix_once=_is_llama(settings) and settings.options.get("legacy") is False,
            add_bos=settings.options.get("add_bos_token") is not False,
        )
    raise CheckpointError(
        f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json with merges.txt, or "
        f"tokenizer.model"
    )


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a disk's fault that the tokenizers library met while writing to `path` into ours.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        # The library raises Exception itself, with the number of the fault in its text.
        number = re.search(r"os error (\d+)", str(error))
        if type(error) is not Exception or number is None:
            raise
        fault = int(number[1])
        raise disk_fault(OSError(fault, os.strerror(fault)), path) from error


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the tokenizers library says of a file into a CheckpointError."""
    try:
        yield
    except Exception as error:
        # The library raises Exception itself for its own complaints; others are bugs.
        if type(error) not in (Exception, TypeError, OverflowError):
            raise
        raise CheckpointError(
            f"{path}: not a tokenizer ({error}); fetch the tokenizer of this model again"
        ) from error


def _is_llama(settings: TokenizerSettings) -> bool:
    return str(settings.options.get("tokenizer_class", "")).startswith("Llama")


def _read_qwen2(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    """Build Qwen2's byte-level BPE from vocab.json and merges.txt."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = str(settings.options.get("tokenizer_class", "Qwen2Tokenizer"))
    if not kind.startswith("Qwen2"):
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt of a {kind}, known is Qwen2Tokenizer; "
            f"save it as tokenizer.json with transformers first"
        )
    vocabulary = _read_object(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocabulary)
    with _refusing(folder / "vocab.json"):
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: not UTF-8 ({error}); fetch the tokenizer of this model again"
        ) from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise CheckpointError(
                f"{path}:{number}: merges {left} and {right}, which vocab.json does not have; "
                f"the two files are of different tokenizers"
            )
        merges.append((left, right))
    return merges


def _add_tokens(backend: Tokenizer, added: Mapping[int, Mapping[str, Any]], folder: Path) -> None:
    """Give the tokenizer the added tokens it does not have yet, under their ids."""
    from tokenizers import AddedToken

    vocabulary = backend.get_vocab(with_added_tokens=True)
    missing: list[Any] = []
    for number, token in sorted(added.items()):
        text = str(token["content"])
        found = vocabulary.get(text, len(vocabulary) + len(missing))
        if found != number:
            raise CheckpointError(
                f"{folder}: added token {text} has id {number} there and {found} in the "
                f"vocabulary; the tokenizer's files are of different models"
            )
        flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
        special = bool(token.get("special", True))
        entry = AddedToken(text, special=special, **{"normalized": False, **flags})
        if text not in vocabulary:
            missing.append(entry)
        elif number not in backend.get_added_tokens_decoder():
            _append(backend, [entry])
    for _, run in groupby(missing, key=lambda entry: entry.special):
        _append(backend, list(run))


def _append(backend: Tokenizer, tokens: list[Any]) -> None:
    if tokens[0].special:
        backend.add_special_tokens(tokens)
    else:
        backend.add_tokens(tokens)


def _processor_tokens(backend: Tokenizer) -> dict[str, str]:
    """Return the names transformers' InternVLProcessor asks for, as far as the tokens exist."""
    names = {
        "start_image_token": IMAGE_START,
        "end_image_token": IMAGE_END,
        "context_image_token": IMAGE_CONTEXT,
        # No InternVL2 has a video token, and the processor wants one that is no picture's: <quad>
        # is in every vocabulary and, in our data, in no text.
        "video_token": "<video>" if backend.token_to_id("<video>") else "<quad>",
    }
    return {name: token for name, token in names.items() if backend.token_to_id(token) is not None}
