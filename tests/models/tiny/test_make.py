"""The tiny tokenizer: made anew it is the one that is shipped, and it loses nothing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.models.presets import load_preset
from adapt.models.tiny.make import VOCABULARY, main
from adapt.models.tokenizers import load_tokenizer

FOLDER = load_preset("tiny").tokenizer_folder
assert FOLDER is not None
TOKENIZER = load_tokenizer(FOLDER)


def test_making_it_again_gives_the_shipped_bytes(tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_it_has_the_size_of_the_embedding() -> None:
    assert len(TOKENIZER) == VOCABULARY == load_preset("tiny").text["vocab_size"]


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "word",
    [
        *("CAM_FRONT", " CAM_FRONT", "CAM_BACK_LEFT", " CAM_BACK_RIGHT", " red", " Red", "red"),
        *("A", "B", "C", "D", "Yes", "No", " left", " vehicle", " object", "<box>", "</ref>"),
        *("0", "7"),
    ],
)
def test_a_common_word_is_one_token(word: str) -> None:
    assert len(TOKENIZER.encode(word)) == 1


def test_digits_stand_alone() -> None:
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode("1000,42")) == list("1000,42")
