"""Chat templates: the reference's token ids, and labels that never lose a record."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from adapt.errors import CheckpointError, RecordError, UsageError
from adapt.models.chat import (
    UNSUPERVISED,
    ChatTemplate,
    encode_conversation,
    encode_rendered,
    load_template,
    render,
    render_prompt,
    template_names,
)
from adapt.models.presets import load_preset
from adapt.models.tokenizers import load_tokenizer
from adapt.records import Message

TINY = load_tokenizer(load_preset("tiny").tokenizer_folder or Path())
REFERENCE = {"Hermes-2": "qwen2", "internlm2-chat": "internlm2", "phi3-chat": "phi3"}
CHATML = ("Hermes-2", "internlm2-chat", "internvl2_5")


def human(text: str) -> Message:
    return Message("human", text)


def gpt(text: str) -> Message:
    return Message("gpt", text)


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> dict[str, PreTrainedTokenizerFast]:
    folders = shared / "tokenizers"
    return {template: load_tokenizer(folders / name) for template, name in REFERENCE.items()}


def read_goldens(shared: Path) -> list[dict[str, Any]]:
    cases = json.loads((shared / "goldens" / "chat_templates.json").read_text("utf-8"))
    assert len(cases) == 24
    return cases


def test_templates_are_the_four_of_internvl() -> None:
    assert template_names() == ["Hermes-2", "internlm2-chat", "internvl2_5", "phi3-chat"]
    for name in template_names():
        assert load_template(name).name == name


def test_an_unknown_template_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_template("hermes2")
    assert "no chat template is called hermes2" in str(caught.value)


def test_ids_and_labels_are_those_of_the_reference(
    shared: Path, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> None:
    dropped_by_reference = 0
    for case in read_goldens(shared):
        conversation = msgspec.convert(case["conversations"], list[Message])
        template = load_template(case["template"])
        tokenizer = tokenizers[case["template"]]
        sample = encode_conversation(template, tokenizer, conversation, case["num_image_tokens"])
        assert sample.input_ids == case["input_ids"]
        if case["labels"] is not None:
            assert sample.labels == case["labels"]
            continue
        dropped_by_reference += 1
        assert supervised_texts(tokenizer, sample.labels) == [
            f"{message.value}{template.end}" for message in conversation if message.speaker == "gpt"
        ]
    assert dropped_by_reference == 1


def supervised_texts(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> list[str]:
    """Return the text of each run of learned tokens."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != UNSUPERVISED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_a_record_as_tokens_label_for_label() -> None:
    template = load_template("internvl2_5")
    sample = encode_conversation(template, TINY, [human("<image>\nred?"), gpt("No.")], [2])
    tokens = TINY.convert_ids_to_tokens(sample.input_ids)
    system = TINY.tokenize(template.system)
    assert tokens == [
        *("<|im_start|>", "system", "Ċ", *system, "<|im_end|>", "Ċ"),
        *("<|im_start|>", "user", "Ċ", "<img>", "<IMG_CONTEXT>", "<IMG_CONTEXT>", "</img>", "Ċ"),
        *("red", "?", "<|im_end|>", "Ċ"),
        *("<|im_start|>", "assistant", "Ċ", "No", ".", "<|im_end|>", "Ċ"),
    ]
    # Learned are the answer and its end token; not the header, not the newline behind.
    learned = sample.input_ids[-4:-1]
    assert TINY.convert_ids_to_tokens(learned) == ["No", ".", "<|im_end|>"]
    assert sample.labels == [UNSUPERVISED] * (len(tokens) - 4) + learned + [UNSUPERVISED]


words = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\n", "  a", "b \n", "\n\nc", "图片 里", "\t", "e\u0301", "é ", " .", "1 000"]
)
turns = words.filter(lambda text: not any(mark in text for mark in ("<", "▁", "\0")))
questions_and_answers = st.lists(st.tuples(turns, turns), min_size=1, max_size=4)


def conversation_of(pairs: list[tuple[str, str]], images: int) -> list[Message]:
    """Return a conversation whose first question has all the pictures."""
    first = "<image>\n" * images
    return [
        message
        for place, (question, answer) in enumerate(pairs)
        for message in (human(("" if place else first) + question), gpt(answer))
    ]


def write_out(template: ChatTemplate, conversation: list[Message], image_tokens: list[int]) -> str:
    """Return the whole text with every image token spelt out."""
    text = f"{template.system_header}{template.system}{template.end}{template.after_end}"
    for message in conversation:
        value = message.value.strip() if template.strip_turns else message.value
        text += template.assistant_header if message.speaker == "gpt" else template.user_header
        text += f"{value}{template.end}{template.after_end}" if value else ""
    for count in image_tokens:
        text = text.replace("<image>", "<img>" + "<IMG_CONTEXT>" * count + "</img>", 1)
    return text


@pytest.mark.parametrize("name", CHATML)
@given(pairs=questions_and_answers, counts=st.lists(st.integers(1, 5), max_size=3))
def test_ids_are_those_of_the_whole_text(
    name: str, pairs: list[tuple[str, str]], counts: list[int]
) -> None:
    template = load_template(name)
    conversation = conversation_of(pairs, len(counts))
    sample = encode_conversation(template, TINY, conversation, counts)
    assert sample.input_ids == TINY.encode(write_out(template, conversation, counts))


@pytest.mark.parametrize("name", REFERENCE)
@settings(max_examples=60)
@given(pairs=questions_and_answers, counts=st.lists(st.integers(1, 5), max_size=3))
def test_ids_are_those_of_the_whole_text_with_real_tokenizers(
    name: str,
    tokenizers: dict[str, PreTrainedTokenizerFast],
    pairs: list[tuple[str, str]],
    counts: list[int],
) -> None:
    template, tokenizer = load_template(name), tokenizers[name]
    conversation = conversation_of(pairs, len(counts))
    sample = encode_conversation(template, tokenizer, conversation, counts)
    assert sample.input_ids == tokenizer.encode(write_out(template, conversation, counts))
    assert_every_answer_is_learned(template, tokenizer, conversation, sample.labels)


@pytest.mark.parametrize("name", CHATML)
@given(pairs=questions_and_answers)
def test_every_answer_is_learned_with_its_end(name: str, pairs: list[tuple[str, str]]) -> None:
    template, conversation = load_template(name), conversation_of(pairs, 0)
    sample = encode_conversation(template, TINY, conversation)
    assert_every_answer_is_learned(template, TINY, conversation, sample.labels)
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        assert label in (token, UNSUPERVISED)


def assert_every_answer_is_learned(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerFast,
    conversation: list[Message],
    labels: list[int],
) -> None:
    answers = [message.value for message in conversation if message.speaker == "gpt"]
    if template.strip_turns:
        answers = [answer.strip() for answer in answers]
    answers = [answer for answer in answers if answer]
    end = tokenizer.convert_tokens_to_ids(template.end)
    assert labels.count(end) == len(answers)
    learned = supervised_texts(tokenizer, labels)
    assert len(learned) == len(answers)
    for text, answer in zip(learned, answers, strict=True):
        # White space at the start may belong to the token of the header before it.
        said = text.removesuffix(template.end)
        assert said.strip() == unicode_nfc(answer).strip() or said.strip() == answer.strip()


def unicode_nfc(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("name", CHATML)
@given(pairs=questions_and_answers)
def test_a_prompt_is_what_precedes_the_answer(name: str, pairs: list[tuple[str, str]]) -> None:
    template = load_template(name)
    conversation = conversation_of(pairs, 1)
    prompt = encode_rendered(TINY, [render_prompt(template, conversation, [3])])[0]
    asked = encode_rendered(TINY, [render_prompt(template, conversation[:-1], [3])])[0]
    assert prompt == asked
    whole = write_out(template, conversation[:-1], [3]) + template.assistant_header
    assert prompt.input_ids == TINY.encode(whole)
    last_question = len(prompt.input_ids)
    assert prompt.labels[last_question - 3 :] == [UNSUPERVISED] * 3


def test_a_newline_that_joins_the_headers_is_not_learned(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    # "assistant\n" + "\nyes" has one token for both newlines: it begins before the answer.
    tokenizer, template = tokenizers["Hermes-2"], load_template("Hermes-2")
    sample = encode_conversation(template, tokenizer, [human("a"), gpt("\nyes")])
    assert tokenizer.convert_ids_to_tokens(sample.input_ids)[-3:] == ["ĊĊ", "yes", "<|im_end|>"]
    assert supervised_texts(tokenizer, sample.labels) == ["yes<|im_end|>"]


def test_phi3_swallows_white_space_behind_its_role_tokens(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer, template = tokenizers["phi3-chat"], load_template("phi3-chat")
    plain = encode_conversation(template, tokenizer, [human("Hi."), gpt("Yes.")])
    spaced = encode_conversation(template, tokenizer, [human(" \n Hi."), gpt("\n\n  Yes.")])
    assert spaced == plain
    assert tokenizer.convert_ids_to_tokens(plain.input_ids[-7:]) == [
        *("▁Hi", ".", "<|end|>", "<|assistant|>", "▁Yes", ".", "<|end|>")
    ]
    assert plain.labels[-4:] == [UNSUPERVISED, *plain.input_ids[-3:]]


def test_internlm2_strips_every_turn() -> None:
    template = load_template("internlm2-chat")
    assert render(template, [human(" \u3000a \n"), gpt("\nb ")]) == render(
        template, [human("a"), gpt("b")]
    )


def test_an_empty_answer_is_its_header_alone() -> None:
    rendered = render(load_template("Hermes-2"), [human("a"), gpt("")])
    assert rendered.text.endswith("<|im_start|>user\na<|im_end|><|im_start|>assistant\n")
    assert rendered.answers == ()


@pytest.mark.parametrize(("counts", "number"), [([], 0), ([5, 5], 2)])
def test_pictures_and_placeholders_must_match(counts: list[int], number: int) -> None:
    with pytest.raises(RecordError) as caught:
        render(load_template("Hermes-2"), [human("<image> what?"), gpt("x")], counts)
    assert str(caught.value) == (
        f"conversation has 1 <image> and {number} pictures; make them match "
        "(adapt check finds such records)"
    )


def test_a_picture_needs_a_token() -> None:
    with pytest.raises(RecordError) as caught:
        render(load_template("Hermes-2"), [human("<image>"), gpt("x")], [0])
    assert str(caught.value) == "a picture needs at least 1 token, found [0]"


@pytest.mark.parametrize("speaker", ["human", "gpt"])
def test_text_cannot_bring_in_image_tokens(speaker: str) -> None:
    turns = {"human": "what?", "gpt": "that."}
    turns[speaker] += "<IMG_CONTEXT>"
    with pytest.raises(RecordError) as caught:
        render(load_template("Hermes-2"), [human(turns["human"]), gpt(turns["gpt"])])
    assert str(caught.value) == (
        f"conversations[{int(speaker == 'gpt')}] spells the token <IMG_CONTEXT>, which stands for "
        "a part of a picture; write <image> for a picture, or spell it otherwise"
    )


def test_text_that_spells_a_control_token_becomes_it_and_loses_no_label() -> None:
    conversation = [human("say <|im_end|>"), gpt("a<|im_end|>b"), human("c"), gpt("d")]
    sample = encode_conversation(load_template("Hermes-2"), TINY, conversation)
    assert supervised_texts(TINY, sample.labels) == ["a<|im_end|>b<|im_end|>", "d<|im_end|>"]


def test_images_in_later_turns_and_in_answers_keep_their_order() -> None:
    conversation = [human("<image>a<image>"), gpt("b<image>"), human("<image>"), gpt("c")]
    sample = encode_conversation(load_template("Hermes-2"), TINY, conversation, [1, 4, 2, 3])
    image = TINY.convert_tokens_to_ids("<IMG_CONTEXT>")
    whole = write_out(load_template("Hermes-2"), conversation, [1, 4, 2, 3])
    assert sample.input_ids == TINY.encode(whole)
    assert sample.input_ids.count(image) == 10
    # A picture inside an answer is not something to be said.
    assert image not in sample.labels
    assert supervised_texts(TINY, sample.labels) == ["b<img>", "</img><|im_end|>", "c<|im_end|>"]


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    template = load_template("internvl2_5")
    conversations = [[human(f"<image> {n}?"), gpt("yes " * n)] for n in range(20)]
    rendered = [render(template, turns, [n + 1]) for n, turns in enumerate(conversations)]
    assert encode_rendered(TINY, rendered) == [
        encode_conversation(template, TINY, turns, [n + 1]) for n, turns in enumerate(conversations)
    ]


def test_a_tokenizer_without_image_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(CheckpointError) as caught:
        encode_conversation(load_template("Hermes-2"), bare, [human("a"), gpt("b")])
    assert str(caught.value).startswith("the tokenizer has no token <IMG_CONTEXT>")
