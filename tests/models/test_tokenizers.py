"""Tokenizers by their files: same ids as their reference, saved and loaded unchanged."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from adapt.errors import CheckpointError
from adapt.models.chat import load_template
from adapt.models.presets import load_preset
from adapt.models.tiny.corpus import sentences
from adapt.models.tokenizers import (
    check_tokenizer,
    has_tokenizer,
    image_token_id,
    load_tokenizer,
    stop_token_ids,
    token_id,
)

TINY = load_preset("tiny").tokenizer_folder or Path()
SAMPLES = (
    "",
    " ",
    "Is there a plane?  Yes.\n\n  No.",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\n请描述这张图片。<|im_end|>",
    "don't WE'LL 3.14 x2 -- ..., \t\r\n",
    "é e\u0301 ﬁ 😀👩‍👩‍👧 \u00a0\u3000",
    "<ref>1 overpass</ref><box>[[412, 380, 655, 701]]</box>",
)
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"))
ascii_texts = st.text(alphabet="abcdefgh aaeeTtx.,0123\n")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


class TestTokenizerJson:
    """The first kind."""

    @pytest.mark.parametrize("name", ["qwen2", "internlm2", "phi3"])
    def test_ids_are_those_of_the_file_through_saving_and_loading(
        self, shared: Path, tmp_path: Path, name: str
    ) -> None:
        folder = shared / "tokenizers" / name
        raw, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
        ours.save_pretrained(tmp_path)
        again, stock = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        for text in (*SAMPLES, "<|end|> \n<|user|>\n  a <s>b</s>"):
            ids = raw.encode(text).ids
            assert ours.encode(text) == again.encode(text) == stock.encode(text) == ids

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("qwen2", 151648), ("internlm2", 92546), ("phi3", 32013)],
    )
    def test_image_token_is_read_from_it(self, shared: Path, name: str, expected: int) -> None:
        assert image_token_id(load_tokenizer(shared / "tokenizers" / name)) == expected

    @pytest.mark.parametrize(
        ("name", "template", "stop"),
        [
            ("qwen2", "Hermes-2", [151645, 151643]),
            ("internlm2", "internlm2-chat", [92542, 2]),
            ("phi3", "phi3-chat", [32007, 32000]),
        ],
    )
    def test_stop_tokens(self, shared: Path, name: str, template: str, stop: list[int]) -> None:
        tokenizer = load_tokenizer(shared / "tokenizers" / name)
        assert stop_token_ids(tokenizer, load_template(template)) == stop

    def test_missing_begin_token_is_added_when_the_config_asks_for_it(self, tmp_path: Path) -> None:
        backend = Tokenizer.from_file(str(TINY / "tokenizer.json"))
        backend.save(str(tmp_path / "tokenizer.json"))
        settings_file = {"bos_token": "<|endoftext|>", "add_bos_token": True}
        write_json(tmp_path / "tokenizer_config.json", settings_file)
        assert load_tokenizer(tmp_path).encode("red") == [0, *backend.encode("red").ids]

    def test_names_for_transformers_processor(self) -> None:
        tokenizer = load_tokenizer(TINY)
        assert tokenizer.start_image_token == "<img>"
        assert tokenizer.end_image_token == "</img>"
        assert tokenizer.context_image_token_id == image_token_id(tokenizer)
        assert tokenizer.video_token == "<quad>"

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text('{"version": "1.0", "model": {')
        with pytest.raises(CheckpointError, match=r"tokenizer\.json:1:\d+: not valid JSON"):
            load_tokenizer(tmp_path)
        path.write_text("[]")
        with pytest.raises(CheckpointError, match=r"a JSON list, expected an object"):
            load_tokenizer(tmp_path)
        path.write_text("{}")
        with pytest.raises(CheckpointError, match=r"no `model` in it"):
            load_tokenizer(tmp_path)

    def test_an_empty_folder_names_the_three_kinds(self, tmp_path: Path) -> None:
        assert not has_tokenizer(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: no tokenizer; expected tokenizer.json, or vocab.json with merges.txt, or "
            "tokenizer.model"
        )


class TestFit:
    """A tokenizer against a template and an embedding."""

    def test_too_small_an_embedding(self) -> None:
        tokenizer, template = load_tokenizer(TINY), load_template("internvl2_5")
        check_tokenizer(tokenizer, template, 1536)
        with pytest.raises(CheckpointError) as caught:
            check_tokenizer(tokenizer, template, 1535)
        last = tokenizer.convert_ids_to_tokens(1535)
        assert str(caught.value) == (
            f"the tokenizer has ids up to 1535 ({last}), the embedding 1535 rows; they are of "
            "different models: put the checkpoint's own tokenizer beside it"
        )

    def test_a_template_whose_end_token_is_missing(self) -> None:
        with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|end\|>"):
            check_tokenizer(load_tokenizer(TINY), load_template("phi3-chat"), 1536)

    def test_token_id_of_no_single_token(self) -> None:
        with pytest.raises(CheckpointError, match=r"has no token <quad><quad>"):
            token_id(load_tokenizer(TINY), "<quad><quad>")


@pytest.fixture(scope="module")
def qwen2_split(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """Return Qwen2's tokenizer.json, and a folder of InternVL2-1B's layout made from it."""
    source = shared / "tokenizers" / "qwen2" / "tokenizer.json"
    value = json.loads(source.read_text("utf-8"))
    folder = tmp_path_factory.mktemp("qwen2")
    write_json(folder / "vocab.json", value["model"]["vocab"])
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in value["model"]["merges"]
    ]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    write_json(
        folder / "added_tokens.json",
        {token["content"]: token["id"] for token in value["added_tokens"]},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": {"content": "<|endoftext|>", "lstrip": False},
            "bos_token": None,
            "add_bos_token": False,
        },
    )
    return Tokenizer.from_file(str(source)), folder


class TestVocabAndMerges:
    """The second kind, InternVL2-1B's."""

    def test_ids_are_those_of_the_tokenizer_it_was_split_from(
        self, qwen2_split: tuple[Tokenizer, Path], tmp_path: Path
    ) -> None:
        raw, folder = qwen2_split
        assert has_tokenizer(folder)
        ours = load_tokenizer(folder)
        assert image_token_id(ours) == 151648
        assert (ours.eos_token_id, ours.pad_token_id, ours.bos_token) == (151645, 151643, None)
        ours.save_pretrained(tmp_path)
        saved = load_tokenizer(tmp_path)
        assert (tmp_path / "tokenizer.json").exists()
        for text in (*SAMPLES, *list(sentences())[300:400]):
            assert ours.encode(text) == saved.encode(text) == raw.encode(text).ids
            assert ours.decode(ours.encode(text)) == raw.decode(raw.encode(text).ids, False)

        @settings(max_examples=200)
        @given(texts | ascii_texts)
        def same(text: str) -> None:
            assert ours.encode(text) == raw.encode(text).ids

        same()

    def small(self, folder: Path) -> dict[str, int]:
        """Write a small vocabulary of this kind, without image tokens."""
        vocabulary = {letter: number for number, letter in enumerate("abcdef")} | {"ab": 6}
        write_json(folder / "vocab.json", vocabulary)
        (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        return vocabulary

    def test_added_tokens_follow_their_ids_and_flags(self, tmp_path: Path) -> None:
        self.small(tmp_path)
        added = {"7": {"content": "<x>", "rstrip": True, "special": True}, "8": {"content": "<y>"}}
        write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
        write_json(tmp_path / "added_tokens.json", {"<y>": 8, "<x>": 7})
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.encode("ab<x>  c<y>") == [6, 7, 2, 8]

    def test_an_added_token_under_another_id(self, tmp_path: Path) -> None:
        self.small(tmp_path)
        write_json(tmp_path / "added_tokens.json", {"<x>": 9})
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: added token <x> has id 9 there and 7 in the vocabulary; the tokenizer's "
            "files are of different models"
        )

    def test_merges_of_another_vocabulary(self, tmp_path: Path) -> None:
        self.small(tmp_path)
        (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na z\n")
        with pytest.raises(CheckpointError, match=r"merges\.txt:3: merges a and z, which vocab"):
            load_tokenizer(tmp_path)

    def test_a_class_with_other_words_is_refused(self, tmp_path: Path) -> None:
        self.small(tmp_path)
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
        with pytest.raises(CheckpointError, match=r"of a GPT2Tokenizer, known is Qwen2Tokenizer"):
            load_tokenizer(tmp_path)


class TestDamage:
    """Files that are JSON, but no tokenizer's."""

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", '{"model": null}', r"tokenizer.json: not a tokenizer \(data did"),
            ("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3}}', "not a tokenizer"),
            ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "no id or no content"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "no id or no cont"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}', "no id or no cont"),
            ("tokenizer_config.json", '{"added_tokens_decoder": {"5": "a"}}', "no id or no cont"),
            ("added_tokens.json", '{"<zz>": null}', "no id or no content"),
            ("added_tokens.json", '{"<zz>": "x"}', "no id or no content"),
        ],
    )
    def test_damaged_json(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        for path in TINY.glob("tokenizer*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_tokenizer(tmp_path)
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("vocabulary", "merges", "message"),
        [
            ('{"a": "x"}', b"", "vocab.json: not a tokenizer"),
            ('{"a": -1}', b"", "vocab.json: not a tokenizer"),
            ('{"a": 0}', b"\xff\xfe\n", "merges.txt: not UTF-8"),
        ],
    )
    def test_damaged_vocabulary(
        self, tmp_path: Path, vocabulary: str, merges: bytes, message: str
    ) -> None:
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_bytes(merges or b"#version: 0.2\n")
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path)
