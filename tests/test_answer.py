"""Prompts, batches and answers; whole predictions are in test_predict.py."""

import pytest
import torch

from adapt.answer import Answerer, Prompt, Tiling, cut_batches, find_device, pad_left, read_answer
from adapt.errors import EnvironmentFault, RecordError, UsageError
from adapt.models.handle import open_model
from adapt.records import Message, RecordLine, Source


def make_record(words: int) -> RecordLine:
    return RecordLine(
        id=f"things/val/{words}",
        image=[],
        width_list=[],
        height_list=[],
        conversations=[Message("human", "Why? " * words), Message("gpt", "")],
        task="vqa",
        source=Source("things", "val", str(words)),
        extra="",
    )


def test_an_answer_ends_before_its_stop_token() -> None:
    handle = open_model("tiny")
    stop = handle.stop_token_ids[0]
    box = handle.tokenizer.convert_tokens_to_ids("<box>")
    [word] = handle.tokenizer.encode("e", add_special_tokens=False)
    ended = read_answer(handle.tokenizer, [word, box, stop, word], handle.stop_token_ids)
    # <box> is a special token, and part of the answer all the same.
    assert (ended.tokens, ended.finish) == (2, "stop")
    assert "<box>" in ended.text
    cut = read_answer(handle.tokenizer, [word, word, word, word], handle.stop_token_ids)
    assert (cut.text, cut.tokens, cut.finish) == ("eeee", 4, "length")
    empty = read_answer(handle.tokenizer, [stop, stop], handle.stop_token_ids)
    assert (empty.text, empty.tokens, empty.finish) == ("", 0, "stop")


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(index, make_record(0), [0] * length, []) for index, length in enumerate(lengths)]


def batch_lengths(*lengths: int, size: int = 2, rope_switch: int | None = None) -> list[list[int]]:
    batches = cut_batches(prompts(*lengths), size, rope_switch=rope_switch, max_new_tokens=10)
    return [[len(prompt.input_ids) for prompt in batch] for batch in batches]


def test_batches_are_of_like_length() -> None:
    assert batch_lengths(50, 10, 400, 20, 95) == [[10, 20], [50, 95], [400]]


def test_a_batch_never_lies_on_both_sides_of_the_ropes_switch() -> None:
    # 95 and 99 cross the switch while they answer, each at its own moment.
    found = batch_lengths(90, 95, 101, 10, 99, 95, 300, 102, size=8, rope_switch=100)
    assert found == [[10, 90], [95, 95], [99], [101, 102, 300]]


def test_a_record_too_long_for_the_model_is_refused() -> None:
    handle = open_model("tiny")
    answerer = object.__new__(Answerer)
    answerer._tiling, answerer._max_new_tokens = Tiling(2), 10

    class Short:
        max_positions = 100
        encode_prompt = staticmethod(handle.encode_prompt)

    answerer._handle = Short()
    assert len(answerer.prompt(0, make_record(0)).input_ids) <= 90
    with pytest.raises(
        RecordError, match=r"things/val/40: \d+ tokens .* more than the model's 100"
    ):
        answerer.prompt(10, make_record(40))


def test_padding_is_on_the_left() -> None:
    tokens, mask = pad_left([[5], [6, 7, 8]], fill=2)
    assert tokens.tolist() == [[2, 2, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
        find_device("gpu")
    with pytest.raises(EnvironmentFault, match="this machine has"):
        find_device("cuda:99")
