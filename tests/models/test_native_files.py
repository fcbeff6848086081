"""What a native folder holds beside its weights."""

import pytest
from jinja2 import Environment

from adapt.models.chat import load_template, render, render_prompt, template_names
from adapt.models.native_files import (
    carry_original_files,
    chat_template_jinja,
    keep_original_files,
    original_files,
)
from adapt.records import Message


def spoken(template, messages, *, with_bos=False, **options):
    return (
        Environment()
        .from_string(chat_template_jinja(template, with_bos=with_bos))
        .render(messages=messages, **options)
    )


@pytest.mark.parametrize("name", template_names())
def test_jinja_writes_what_adapt_writes(name):
    template = load_template(name)
    turns = [
        Message("human", '  what "is" it?\n{{ 1 }} '),
        Message("gpt", " a box\\ "),
        Message("human", "一只猫"),
    ]
    messages = [
        {"role": "user" if turn.speaker == "human" else "assistant", "content": turn.value}
        for turn in turns
    ]
    assert spoken(template, messages) == render(template, turns).text
    prompt = render_prompt(template, [*turns, Message("gpt", "")]).text
    assert spoken(template, messages, add_generation_prompt=True) == prompt
    with_bos = spoken(
        template, messages, add_generation_prompt=True, with_bos=True, bos_token="<s>"
    )
    assert with_bos == f"<s>{prompt}"


@pytest.mark.parametrize("name", template_names())
def test_jinja_puts_pictures_where_they_are(name):
    template = load_template(name)
    picture, text = {"type": "image"}, {"type": "text", "text": "what?"}
    written = spoken(template, [{"role": "user", "content": [picture, picture, text]}])
    wanted = render(template, [Message("human", "<image>\n<image>\nwhat?")], [1, 1]).text
    assert written.replace("<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>") == wanted


def test_jinja_takes_a_system_text_of_its_own():
    template = load_template("Hermes-2")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert spoken(template, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nhi<|im_end|>"
    )


def test_small_files_are_kept_and_carried(tmp_path):
    source, native, trained = (tmp_path / name for name in ("source", "native", "trained"))
    for folder in (source, native, trained):
        folder.mkdir()
    kept = ["added_tokens.json", "config.json", "merges.txt", "tokenizer.model", "vocab.json"]
    for name in (*kept, "model.safetensors", "model.safetensors.index.json", "modeling.py", "x.md"):
        (source / name).write_bytes(name.encode())
    keep_original_files(source, native)
    carry_original_files(native, trained)
    assert sorted(path.name for path in (trained / "original").iterdir()) == kept
    assert all(path.read_bytes() == path.name.encode() for path in original_files(trained))
    carry_original_files(source, tmp_path)
    assert not (tmp_path / "original").exists()
