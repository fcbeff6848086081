"""`adapt models list` and `show`: facts, and records as the exact tokens that are trained on."""

import re
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.cli import run
from adapt.errors import RecordError
from adapt.models.card import write_card
from adapt.models.handle import ModelHandle, open_model
from adapt.models.presets import load_preset, preset_names
from adapt.models.show import list_models, render_records, show_model
from adapt.records import Message, RecordLine, Source

SYSTEM = (
    "你是书生 · 万象 ， 英文名是InternVL ， 是由上海人工智能实验室 、 "
    "清华大学及多家合作单位联合开发的多模态大语言模型 。 <|im_end|> \\n"
)


@pytest.fixture(scope="module")
def tiny() -> ModelHandle:
    return open_model("tiny")


def write_record(path: Path, question: str, answer: str, image: bool = True) -> Path:
    record = RecordLine(
        id="cars/train/7",
        image=["images/7.jpg"] * image,
        width_list=[2688] * image,
        height_list=[896] * image,
        conversations=[Message("human", question), Message("gpt", answer)],
        task="multiview",
        source=Source("cars", "train", "7"),
        extra="",
    )
    path.write_bytes(msgspec.json.encode(record) + b"\n")
    return path


def test_every_preset_is_listed_with_its_size_and_place() -> None:
    lines = list(list_models())
    assert [line.split()[0] for line in lines] == preset_names()
    by_name = {line.split()[0]: line.split()[1:] for line in lines}
    assert by_name["mini-internvl2-1b"] == ["0.94", "B", "Hermes-2", "OpenGVLab/InternVL2-1B"]
    assert by_name["tiny"][:3] == ["0.60", "M", "internvl2_5"]


def test_a_preset_is_described() -> None:
    lines = list(show_model("mini-internvl2-2b"))
    assert lines[0] == "Mini-InternVL2-2B: internvl, language model internlm2-chat-1_8b"
    assert lines[1] == (
        "parameters     2.21 B in all: vision 304.01 M, projector 12.60 M, language 1.89 B"
    )
    assert "licence        mit" in lines
    assert "hub id         OpenGVLab/InternVL2-2B (original layout)" in lines
    assert r'  user_header      "<|im_start|>user\n"' in lines
    assert any(load_preset("mini-internvl2-2b").template in line for line in lines)


def test_what_is_unverified_is_said() -> None:
    lines = list(show_model("internvl2_5-4b-hf"))
    assert [line for line in lines if line.startswith("unverified")] == [
        f"unverified     {doubt}" for doubt in load_preset("internvl2_5-4b-hf").unverified
    ]
    assert len(load_preset("internvl2_5-4b-hf").unverified) == 2


def test_a_folder_is_described(tiny: ModelHandle, tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    tiny.save_extras(tmp_path)
    lines = list(show_model(str(tmp_path)))
    assert lines[:5] == [
        f"folder         {tmp_path}",
        "architecture   internvl",
        "preset         tiny",
        "tile           448 px, 16 tokens",
        "vocabulary     1536, <IMG_CONTEXT> is 5",
    ]


def test_weights_without_a_tokenizer_are_described(tiny: ModelHandle, tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    write_card(tmp_path, tiny.card())
    lines = list(show_model(str(tmp_path)))
    assert lines[4] == "vocabulary     1536, <IMG_CONTEXT> is 5; no tokenizer: weights"
    assert "chat template  internvl2_5" in lines


def test_a_record_is_rendered_token_for_token(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_record(tmp_path / "train.jsonl", "<image>\nred?", "No.")
    lines = list(render_records(tiny, path))
    assert lines[0] == "cars/train/7: 240 tokens, 208 of them of 13 tiles, 3 learned"
    texts = [re.sub(r"\b\d+:", "", line) for line in lines[1:]]
    assert texts[0] == "    <|im_start|> system \\n"
    # The system text may take several lines, by the width of its ids.
    assert " ".join(line.strip() for line in texts[1:-6]) == SYSTEM
    assert texts[-6:] == [
        "    <|im_start|> user \\n",
        "    <img> <IMG_CONTEXT> x 208 </img> \\n",
        "    red ? <|im_end|> \\n",
        "    <|im_start|> assistant \\n",
        ">   No . <|im_end|>",
        "    \\n",
    ]


# Without what the printed form itself is made of, so that it can be read back below.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<:x"), max_size=20)
PRINTED = re.compile(r"(?<= )([0-9]+):(?:(?! [0-9]+:).)+?(?: x ([0-9]+))?(?= [0-9]+:|$)")


@given(question=words, answer=words)
def test_every_id_is_printed_and_every_learned_one_marked(question: str, answer: str) -> None:
    handle = open_model("tiny")
    with tempfile.TemporaryDirectory() as folder:
        path = write_record(Path(folder) / "x.jsonl", question, answer, image=False)
        lines = list(render_records(handle, path))
    printed, learned = [], []
    for line in lines[1:]:
        for token, times in PRINTED.findall(line):
            printed += [int(token)] * int(times or 1)
            learned += [line.startswith(">")] * int(times or 1)
    sample = handle.encode([Message("human", question), Message("gpt", answer)], [])
    assert printed == sample.input_ids
    assert learned == [label != -100 for label in sample.labels]


def test_a_record_that_does_not_fit_is_named(tiny: ModelHandle, tmp_path: Path) -> None:
    path = write_record(tmp_path / "train.jsonl", "no picture", "No.")
    with pytest.raises(RecordError, match=r"train\.jsonl:1: conversation has 0 <image> and 1"):
        list(render_records(tiny, path))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(tmp_path / "train.jsonl", "<image>\nred?", "No.")
    assert run(["models", "list"]) == 0
    assert "mono-internvl-2b" in capsys.readouterr().out
    assert run(["models", "show", "mono-internvl-2b"]) == 0
    assert capsys.readouterr().out.startswith("Mono-InternVL-2B: mono, ")
    command = ["models", "show", "tiny", "--render", str(path), "--max-tiles", "1"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("cars/train/7: 48 tokens, 16 of them of 1 tile, 3 learned\n")
    assert run(["models", "show", "tinny"]) == 2
    assert capsys.readouterr().err == (
        "adapt: tinny: no such folder, and no preset or hub id of that name (did you mean tiny?); "
        "see adapt models list\n"
    )
