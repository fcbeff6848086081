"""Conversations in the dialects they are found in, read into one shape.

    LLaVA, InternVL    {"image": "a.jpg", "conversations": [{"from": "human", "value": ...}, ...]}
    ShareGPT           the same with user / assistant; role / content also
    LLaVA of old       {"image": "a.jpg", "instruction": ..., "output": ...}; input and history too
    LLaMA-Factory      {"messages": [{"role": "user", "content": ...}, ...], "images": [...]}
    OpenAI, XTuner     content as parts: {"type": "text"}, {"type": "image_url"}, {"type": "image"}
    questions          {"image": "a.jpg", "question": ..., "answer": ...}
    prompts            {"image": "a.jpg", "text": "[UNUSED_TOKEN_146]user...", "answer": "B"}

`<image>` stands for a picture in all of them; XTuner writes `<IMG_CONTEXT>` instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapt.records import IMAGE_PLACEHOLDER, SkipError, Speaker, Turn

_SPEAKERS: dict[str, Speaker] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
}
_SYSTEM = ("system", "developer")
_XTUNER_PLACEHOLDER = "<IMG_CONTEXT>"
_MEDIA = re.compile("video|audio")
_CHAT_TURN = re.compile(
    r"(?:\[UNUSED_TOKEN_146\]|<\|im_start\|>)(\w+)\n"
    r"(.*?)(?:\[UNUSED_TOKEN_145\]|<\|im_end\|>|\Z)\n?",
    re.DOTALL,
)
# Keys that a conversation is read from; whatever else a row holds is kept beside the record.
_READ = {"image", "images", "width", "height", "conversations", "messages", "instruction"}
_READ |= {"input", "output", "history", "question", "text", "answer", "system"}


class RowError(SkipError):
    """A row gives no record."""


@dataclass(slots=True)
class Conversation:
    """A row, read.

    Args:
        turns: Alternating, human first; as many `<image>` as images.
        images: Paths as the row gives them.
        system: The system message, empty for none; no part of the turns.
        others: What else the row holds, by key.
        notes: What was changed, by reason.
    """

    turns: list[Turn]
    images: list[str]
    system: str = ""
    others: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Message:
    role: str
    text: str
    images: list[str] = field(default_factory=list)


def dialect_of(row: object) -> str | None:
    """Return the name of the dialect that a row is in, None when it is no conversation.

    >>> dialect_of({"id": 1, "conversations": []}), dialect_of({"imgname": "a", "label": "b"})
    ('conversations', None)
    """
    if not isinstance(row, dict):
        return None
    return next(
        (
            name
            for name, keys in (
                ("conversations", ("conversations",)),
                ("messages", ("messages",)),
                ("instruction", ("instruction",)),
                ("question", ("question",)),
                ("text", ("text", "answer")),
            )
            if all(key in row for key in keys)
        ),
        None,
    )


def read_conversation(row: object) -> Conversation:
    """Read a row of any dialect.

    Raises:
        RowError: It is malformed, or holds what is not supported; with a reason to count by.
    """
    dialect = dialect_of(row)
    if dialect is None or not isinstance(row, dict):
        raise RowError("no-conversation", f"found {_short(row)}, expected a conversation")
    _refuse_media(row)
    read: dict[str, Callable[[Mapping[str, Any]], list[_Message]]] = {
        "conversations": lambda row: _messages(row["conversations"], "conversations"),
        "messages": lambda row: _messages(row["messages"], "messages"),
        "instruction": _instruction,
        "question": _question,
        "text": _prompt,
    }
    messages = read[dialect](row)
    images = _images(row) + [image for message in messages for image in message.images]
    conversation = Conversation([], images, str(row.get("system") or ""))
    conversation.others = {
        key: value
        for key, value in row.items()
        if key not in _READ and isinstance(value, str | int | float) and value != ""
    }
    _fill_turns(conversation, messages)
    _place_images(conversation)
    return conversation


# --- Dialects -----------------------------------------------------------------------------------


def _refuse_media(row: Mapping[str, Any]) -> None:
    for key in ("video", "videos", "audio", "audios"):
        if row.get(key):
            raise RowError(
                f"{key.removesuffix('s')}-not-supported", f"holds {key} {_short(row[key])}"
            )


def _images(row: Mapping[str, Any]) -> list[str]:
    """Return the pictures a row names beside its turns: a path, several, or none."""
    found: list[str] = []
    for key in ("image", "images"):
        value = row.get(key) or []
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
            raise RowError("image-malformed", f"{key} is {_short(value)}, expected paths")
        found += paths
    return found


def _messages(value: object, key: str) -> list[_Message]:
    if not isinstance(value, list):
        raise RowError("turns-malformed", f"{key} is {_short(value)}, expected a list of turns")
    messages = []
    for index, turn in enumerate(value):
        place = f"{key}[{index}]"
        if not isinstance(turn, dict):
            raise RowError("turns-malformed", f"{place} is {_short(turn)}, expected a turn")
        role = turn.get("from", turn.get("role"))
        content = turn.get("value", turn.get("content"))
        if not isinstance(role, str):
            raise RowError("turns-malformed", f"{place} has no role: {_short(turn)}")
        messages.append(_message(role, content, place))
    return messages


def _message(role: str, content: object, place: str) -> _Message:
    if content is None or isinstance(content, str):
        return _Message(role, content or "")
    if not isinstance(content, list):
        raise RowError("turns-malformed", f"{place} holds {_short(content)}, expected text")
    pieces: list[str] = []
    images: list[str] = []
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            pieces.append(part["text"])
        elif kind in ("image_url", "image", "input_image"):
            images += _part_image(part, place)
            pieces.append(f"{IMAGE_PLACEHOLDER}\n")
        elif isinstance(kind, str) and (media := _MEDIA.search(kind)):
            raise RowError(f"{media[0]}-not-supported", f"{place} holds {_short(part)}")
        else:
            raise RowError("content-unknown", f"{place} holds {_short(part)}")
    text = "".join(texts)
    placed = IMAGE_PLACEHOLDER in text or _XTUNER_PLACEHOLDER in text
    return _Message(role, text if placed else "".join(pieces), images)


def _part_image(part: Mapping[str, Any], place: str) -> list[str]:
    """Return the path of an image part; none when the row lists its images elsewhere."""
    value = next((part[key] for key in ("image_url", "image", "path", "url") if part.get(key)), "")
    if isinstance(value, dict):
        value = value.get("url") or value.get("path") or ""
    if not isinstance(value, str):
        raise RowError("image-malformed", f"{place} names {_short(value)}, expected a path")
    return [value] if value else []


def _instruction(row: Mapping[str, Any]) -> list[_Message]:
    history = row.get("history") or []
    messages = []
    for pair in history if isinstance(history, list) else [history]:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        ):
            raise RowError("turns-malformed", f"history holds {_short(pair)}, expected two texts")
        messages += [_Message("human", pair[0]), _Message("gpt", pair[1])]
    question = _text(row, "instruction")
    if more := _text(row, "input"):
        question = f"{question}\n{more}"
    return [*messages, _Message("human", question), _Message("gpt", _text(row, "output"))]


def _question(row: Mapping[str, Any]) -> list[_Message]:
    return [_Message("human", _text(row, "question")), _Message("gpt", _text(row, "answer"))]


def _prompt(row: Mapping[str, Any]) -> list[_Message]:
    """Read a prompt with chat tokens; the answer goes on where its last turn ends."""
    text, answer = _text(row, "text"), _text(row, "answer")
    turns = _CHAT_TURN.findall(text)
    if not turns:
        return [_Message("human", text), _Message("gpt", answer)]
    messages = [_Message(role, part) for role, part in turns]
    if messages[-1].role != "assistant":
        return [*messages, _Message("assistant", answer)]
    begun = messages[-1].text
    messages[-1].text = f"{begun} {answer}" if begun and answer else answer
    return messages


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("turns-malformed", f"{key} is {_short(value)}, expected text")
    return str(value)


# --- One shape ----------------------------------------------------------------------------------


def _fill_turns(conversation: Conversation, messages: Iterable[_Message]) -> None:
    """Turn messages into alternating turns, with what the reference trainer leaves out noted."""
    turns = conversation.turns
    for message in messages:
        role = message.role.lower()
        if role in _SYSTEM:
            conversation.system = "\n".join(filter(None, [conversation.system, message.text]))
            continue
        if role not in _SPEAKERS:
            raise RowError("role-unknown", f"found {message.role!r}, expected human or gpt")
        turns.append(Turn(_SPEAKERS[role], message.text))
    if conversation.system:
        conversation.notes.append("system-message-left-out")
    if turns and turns[0].speaker == "gpt":
        del turns[0]
        conversation.notes.append("leading-answer-left-out")
    if turns and turns[-1].speaker == "human":
        del turns[-1]
        conversation.notes.append("open-question-left-out")
    if not turns:
        raise RowError("answer-missing", "found no question with an answer")
    for index, turn in enumerate(turns):
        if turn.speaker != ("human", "gpt")[index % 2]:
            raise RowError("turns-not-alternating", f"turn {index} is {turn.speaker} again")
        if not turn.text.strip():
            kind = "question" if turn.speaker == "human" else "answer"
            raise RowError(f"{kind}-empty", f"turn {index} is empty")


def _place_images(conversation: Conversation) -> None:
    """Make sure of one `<image>` for each picture; where there is none, they come first."""
    turns, images = conversation.turns, conversation.images
    for index, turn in enumerate(turns):
        text = turn.text.replace(_XTUNER_PLACEHOLDER, IMAGE_PLACEHOLDER)
        if turn.speaker == "gpt" and IMAGE_PLACEHOLDER in text:
            raise RowError("placeholder-in-answer", f"turn {index} holds {IMAGE_PLACEHOLDER}")
        turns[index] = Turn(turn.speaker, text)
    found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if images and not found:
        first = f"{IMAGE_PLACEHOLDER}\n" * len(images) + turns[0].text
        turns[0] = Turn("human", first)
        conversation.notes.append("placeholder-added")
    elif found != len(images):
        raise RowError(
            "placeholders-mismatch",
            f"found {found} {IMAGE_PLACEHOLDER}, expected {len(images)}, one for each picture",
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
