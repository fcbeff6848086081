"""Chat templates: a conversation to text, to token ids, to what is learned.

A template is data (`templates/NAME.yaml`), never a code path. Every one renders as

    system_header system end after_end
    (user_header text end after_end  assistant_header text end after_end)...

and each `<image>` becomes `<img>` + `<IMG_CONTEXT>` * tokens + `</img>`. An empty turn is its
header alone, as in the reference. The whole text is tokenised at once. A token is learned when it
begins inside an answer or its end token, by character offsets: no count of a piece tokenised apart
has to match, so no record is ever dropped.

Text that spells a control token (`<|im_end|>`) becomes that token, as in the reference trainer.
Text that spells `<IMG_CONTEXT>` is refused: picture features have exactly the places of `<image>`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import yaml

from adapt.errors import CheckpointError, RecordError, UsageError, nearest
from adapt.records import IMAGE_PLACEHOLDER, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
UNSUPERVISED = -100
"""Label of a token that is not learned."""

# One context token stands for all of a picture's until the text is tokenised: special tokens
# never merge with their neighbours, and 3328 of them a picture would be most of the work.
_ONE_PICTURE = f"{IMAGE_START}{IMAGE_CONTEXT}{IMAGE_END}"
_TEMPLATES = Path(__file__).parent / "templates"


class ChatTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a conversation is written out; see the module docstring.

    Attributes:
        name: As in `template` of an original checkpoint's config.json.
        system: System text, always first.
        system_header: What precedes the system text.
        user_header: What precedes a question.
        assistant_header: What precedes an answer.
        end: The token that ends the system text and every turn; learned after an answer.
        after_end: What follows `end`; never learned.
        strip_turns: Whether white space at both ends of a turn is removed first.
        stop: Tokens that end an answer, those of them that the tokenizer has.
        source: Where these facts are from.
    """

    name: str
    system: str
    system_header: str
    user_header: str
    assistant_header: str
    end: str
    after_end: str
    strip_turns: bool
    stop: tuple[str, ...]
    source: str


class Sample(msgspec.Struct, frozen=True):
    """A tokenised record.

    Attributes:
        input_ids: Token ids.
        labels: The id where it is learned, else -100; as long as `input_ids`, not shifted.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with one context token for each picture.

    Attributes:
        text: What is tokenised.
        answers: (start, end) in `text` of each answer with its end token.
        image_tokens: Context tokens of each picture.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    image_tokens: tuple[int, ...]


def template_names() -> list[str]:
    """Return the names of the shipped templates."""
    return sorted(path.stem for path in _TEMPLATES.glob("*.yaml"))


@cache
def load_template(name: str) -> ChatTemplate:
    """Return a shipped template.

    Raises:
        UsageError: No template has this name.
    """
    path = _TEMPLATES / f"{name}.yaml"
    if name not in template_names():
        raise UsageError(f"no chat template is called {name}{nearest(name, template_names())}")
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    return msgspec.convert({"name": name, **fields}, ChatTemplate)


def render(
    template: ChatTemplate, conversation: Sequence[Message], image_tokens: Sequence[int] = ()
) -> Rendered:
    """Write a conversation out.

    Args:
        template: How.
        conversation: Turns, human first, alternating.
        image_tokens: Context tokens of each picture, in the order of the `<image>`s.

    Raises:
        RecordError: As many `<image>` as pictures are not there, a picture has no token, or a turn
            spells a context token.
    """
    _match_images(conversation, image_tokens)
    parts = [template.system_header, template.system, template.end, template.after_end]
    length = sum(map(len, parts))
    answers = []
    for message in conversation:
        text = message.value.strip() if template.strip_turns else message.value
        text = text.replace(IMAGE_PLACEHOLDER, _ONE_PICTURE)
        is_answer = message.speaker == "gpt"
        header = template.assistant_header if is_answer else template.user_header
        start = length + len(header)
        parts.append(header)
        length = start
        if not text:
            continue
        parts += [text, template.end, template.after_end]
        if is_answer:
            answers.append((start, start + len(text) + len(template.end)))
        length += len(text) + len(template.end) + len(template.after_end)
    return Rendered("".join(parts), tuple(answers), tuple(image_tokens))


def render_prompt(
    template: ChatTemplate, conversation: Sequence[Message], image_tokens: Sequence[int] = ()
) -> Rendered:
    """Write out everything up to and with the header of the last answer, whatever it says."""
    turns = [*conversation]
    if turns and turns[-1].speaker == "gpt":
        turns.pop()
    return render(template, [*turns, Message("gpt", "")], image_tokens)


def encode_conversation(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerFast,
    conversation: Sequence[Message],
    image_tokens: Sequence[int] = (),
) -> Sample:
    """Return the token ids of one conversation and what is learned of them; see `render`."""
    return encode_rendered(tokenizer, [render(template, conversation, image_tokens)])[0]


def encode_rendered(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterable[Rendered]
) -> list[Sample]:
    """Tokenise rendered conversations, all in one call of the Rust tokenizer.

    Raises:
        CheckpointError: The tokenizer has no fast back end, or no `<IMG_CONTEXT>`.
        RecordError: A turn spells `<IMG_CONTEXT>`.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} gives no character offsets; load it by "
            f"adapt.models.tokenizers.load_tokenizer, which converts it"
        )
    rendered = list(conversations)
    backend = tokenizer.backend_tokenizer
    image_id = backend.token_to_id(IMAGE_CONTEXT)
    if image_id is None:
        raise CheckpointError(f"the tokenizer has no token {IMAGE_CONTEXT}; add it to the model")
    encodings = backend.encode_batch([conversation.text for conversation in rendered])
    return [
        _to_sample(encoding.ids, encoding.offsets, conversation, image_id)
        for encoding, conversation in zip(encodings, rendered, strict=True)
    ]


def _to_sample(
    ids: list[int], offsets: list[tuple[int, int]], conversation: Rendered, image_id: int
) -> Sample:
    """Label the tokens of the answers, then put in the context tokens of the pictures."""
    begins = [begin for begin, _ in offsets]
    labels = [UNSUPERVISED] * len(ids)
    for start, end in conversation.answers:
        first = bisect_left(begins, start)
        last = bisect_left(begins, end, lo=first)
        labels[first:last] = ids[first:last]
    if conversation.image_tokens:
        place = 0
        for count in conversation.image_tokens:
            place = ids.index(image_id, place)
            ids[place : place + 1] = [image_id] * count
            labels[place : place + 1] = [UNSUPERVISED] * count
            place += count
    return Sample(ids, labels)


def _match_images(conversation: Sequence[Message], image_tokens: Sequence[int]) -> None:
    """Refuse what would put picture features in the wrong place."""
    placeholders = sum(message.value.count(IMAGE_PLACEHOLDER) for message in conversation)
    if placeholders != len(image_tokens):
        raise RecordError(
            f"conversation has {placeholders} {IMAGE_PLACEHOLDER} and {len(image_tokens)} "
            f"pictures; make them match (adapt check finds such records)"
        )
    if image_tokens and min(image_tokens) < 1:
        raise RecordError(f"a picture needs at least 1 token, found {list(image_tokens)}")
    for turn, message in enumerate(conversation):
        if IMAGE_CONTEXT in message.value:
            raise RecordError(
                f"conversations[{turn}] spells the token {IMAGE_CONTEXT}, which stands for a part "
                f"of a picture; write {IMAGE_PLACEHOLDER} for a picture, or spell it otherwise"
            )
