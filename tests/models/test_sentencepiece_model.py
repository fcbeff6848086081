"""Sentencepiece models: the fast tokenizer gives the ids that sentencepiece gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapt.errors import CheckpointError
from adapt.models.sentencepiece_model import PieceKind, read_sentencepiece
from adapt.models.tiny.corpus import sentences
from adapt.models.tokenizers import image_token_id, load_tokenizer

IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
SAMPLES = (
    "",
    " ",
    "Is there a plane?  Yes.\n\n  No.",
    "<|im_start|>user\n请描述这张图片。<|im_end|>",
    "don't WE'LL 3.14 x2 -- ..., \t\r\n",
    "é e\u0301 ﬁ 😀👩‍👩‍👧 \u00a0\u3000",
    "aaa aaaa aaaaa bbbbbb   ",
)
# Without the marks of control pieces (`<s>`): text never becomes these in sentencepiece, and always
# in transformers.
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0▁<["))
ascii_texts = st.text(alphabet="abcdefgh aaeeTtx.,0123\n")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


Trained = tuple[sentencepiece.SentencePieceProcessor, Path]


@pytest.fixture(scope="module", params=[True, False], ids=["dummy-prefix", "no-prefix"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a sentencepiece BPE like Llama's (Phi-3) or InternLM2's, and its folder."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_model(folder, add_dummy_prefix=request.param)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), folder


def train_model(folder: Path, **options: Any) -> None:
    lines = [*dict.fromkeys(sentences()), "人工智能 实验室 清华大学", "aaa aaaa bbbb  cc   dd"] * 3
    settings_of_llama: dict[str, Any] = {
        "vocab_size": 900,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]"],
        "character_coverage": 0.999,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **{**settings_of_llama, **options},
    )


def added_after(size: int, *, rstrip: bool = False) -> dict[str, dict[str, Any]]:
    tokens = ("<|user|>", "<|end|>", *IMAGE_TOKENS)
    return {
        str(size + place): {"content": token, "rstrip": rstrip and token.startswith("<|")}
        for place, token in enumerate(tokens)
    }


def test_the_file_is_read_as_sentencepiece_reads_it(trained: Trained) -> None:
    reference, folder = trained
    model = read_sentencepiece(folder / "tokenizer.model")
    assert len(model.pieces) == reference.vocab_size()
    for number, piece in enumerate(model.pieces):
        assert piece.text == reference.id_to_piece(number)
        assert piece.score == pytest.approx(reference.get_score(number))
        assert (piece.kind == PieceKind.BYTE) == reference.is_byte(number)
        assert (piece.kind == PieceKind.CONTROL) == reference.is_control(number)
        assert (piece.kind == PieceKind.UNKNOWN) == reference.is_unknown(number)
    assert model.byte_fallback
    assert model.character_map == b""


def test_ids_are_those_of_sentencepiece(trained: Trained, tmp_path: Path) -> None:
    reference, folder = trained
    ours = load_tokenizer(folder)
    ours.save_pretrained(tmp_path)
    saved = load_tokenizer(tmp_path)
    begin = reference.bos_id()
    for text in (*SAMPLES, *list(dict.fromkeys(sentences()))[:300]):
        if any(token in text for token in ("<s>", "</s>", "<unk>")):
            continue
        ids = [begin, *reference.encode(text)]
        assert ours.encode(text) == saved.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=True) == reference.decode(ids)

    @settings(max_examples=300)
    @given(texts | ascii_texts)
    def same(text: str) -> None:
        assert ours.encode(text) == [begin, *reference.encode(text)]

    same()


def test_added_tokens_come_after_the_model(trained: Trained, tmp_path: Path) -> None:
    reference, folder = trained
    size = reference.vocab_size()
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    config = {
        "added_tokens_decoder": added_after(size, rstrip=True),
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "unk_token": "<unk>",
    }
    write_json(tmp_path / "tokenizer_config.json", config)
    ours = load_tokenizer(tmp_path)
    assert image_token_id(ours) == size + 4
    assert (ours.bos_token_id, ours.eos_token_id) == (reference.bos_id(), size + 1)
    text = "<|user|>\n red  car<img><IMG_CONTEXT></img>\nwhat?<|end|>"
    # Each stretch between special tokens is text of its own, as in the released tokenizer.json.
    expected = [
        *(reference.bos_id(), size, *reference.encode("red  car"), size + 2, size + 4),
        *(size + 3, *reference.encode("\nwhat?"), size + 1),
    ]
    assert ours.encode(text) == expected


def test_the_prefix_goes_in_front_once_for_llama_that_is_not_legacy(
    trained: Trained, tmp_path: Path
) -> None:
    reference, folder = trained
    size = reference.vocab_size()
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False}
    write_json(
        tmp_path / "tokenizer_config.json",
        {**config, "added_tokens_decoder": added_after(size)},
    )
    ours = load_tokenizer(tmp_path)
    assert ours.encode("red car") == reference.encode("red car")
    # Behind a special token nothing is put in front of the text.
    after_picture = ours.convert_ids_to_tokens(ours.encode("<img>red car"))
    assert after_picture[0] == "<img>"
    assert "".join(after_picture[1:]) == "red▁car"
    assert after_picture[-1] == "▁car"


def test_placeholders_take_the_name_the_folder_gives_them(trained: Trained, tmp_path: Path) -> None:
    reference, folder = trained
    unused = reference.piece_to_id("[UNUSED_1]")
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "added_tokens_decoder": {str(unused): {"content": "<|im_end|>", "special": True}},
    }
    write_json(tmp_path / "tokenizer_config.json", config)
    ours = load_tokenizer(tmp_path)
    assert ours.encode("red<|im_end|>") == [*(reference.bos_id(), *reference.encode("red"), unused)]
    assert ours.backend_tokenizer.token_to_id("[UNUSED_1]") is None
    assert ours.decode([unused], skip_special_tokens=True) == ""


def test_stock_transformers_reads_what_is_saved(trained: Trained, tmp_path: Path) -> None:
    _, folder = trained
    ours = load_tokenizer(folder)
    ours.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(stock, PreTrainedTokenizerFast)
    for text in SAMPLES:
        assert stock.encode(text) == ours.encode(text)


@pytest.mark.parametrize("length", [0, 1, 40, 5000])
def test_a_cut_off_model_is_refused(trained: Trained, tmp_path: Path, length: int) -> None:
    whole = (trained[1] / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "expected a sentencepiece model of kind BPE"),
        ({"remove_extra_whitespaces": True}, "it removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "it removes extra spaces"),
    ],
)
def test_models_no_internvl_has_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    train_model(tmp_path, vocab_size=500, **options)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)
