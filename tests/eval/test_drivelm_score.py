"""The challenge's rules: points, graph, weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.errors import RecordError
from adapt.eval.drivelm_score import (
    Counted,
    Question,
    count_answers,
    language_score,
    match_points,
    score_answers,
)
from adapt.eval.judge import Pair


class FixedJudge:
    """Gives the scores of a table, and remembers what it was asked."""

    def __init__(self, scores):
        self.scores = scores
        self.asked = []

    def rate(self, pairs):
        self.asked += pairs
        return [self.scores[pair.id] for pair in pairs]


def question(name, text="Where?", truth="There.", tags=(0,)):
    frame = name.rsplit("_", 1)[0]
    return Question(name, frame, text, truth, frozenset(tags), asked=(text,))


def tag(x, y, camera="CAM_BACK"):
    return f"<c1,{camera},{x},{y}>"


# Points


@pytest.mark.parametrize(
    ("answer", "truth", "matched"),
    [
        # |dx| + |dy| under 16, not at it.
        (tag(10.0, 20.0), [(18.0, 27.9)], [(18.0, 27.9)]),
        (tag(10.0, 20.0), [(18.0, 28.0)], []),
        # The camera is not looked at, nor anything else around the numbers.
        (tag(10.0, 20.0, "CAM_FRONT"), [(10.0, 20.0)], [(10.0, 20.0)]),
        ("10.0 or maybe 20.0?", [(10.0, 20.0)], [(10.0, 20.0)]),
        # Numbers without a decimal point are none; a sign is not read.
        (tag(10, 20), [(10.0, 20.0)], []),
        (tag(-10.0, -20.0), [(10.0, 20.0)], [(10.0, 20.0)]),
        # Half a point at the end is left out, and it is the pairing that counts, not the tags.
        (tag(10.0, 20.0) + " <c2,CAM_BACK,30.0", [(10.0, 20.0)], [(10.0, 20.0)]),
        ("0.5 " + tag(10.0, 20.0), [(10.0, 20.0)], []),
        ("1.2.3.4", [(1.2, 3.4)], [(1.2, 3.4)]),
        # The nearest is taken; of two as near the first; a true point is taken once.
        (tag(10.0, 20.0), [(15.0, 20.0), (12.0, 20.0)], [(12.0, 20.0)]),
        (tag(10.0, 20.0), [(12.0, 20.0), (8.0, 20.0)], [(12.0, 20.0)]),
        (tag(10.0, 20.0) * 2, [(10.0, 20.0)], [(10.0, 20.0)]),
        # Greedy in the answer's order: the first takes what the second would need.
        (tag(10.0, 0.0) + tag(0.0, 0.0), [(8.0, 0.0), (40.0, 0.0)], [(8.0, 0.0)]),
        # Twice the same true point is two points.
        (tag(10.0, 20.0), [(10.0, 20.0), (10.0, 20.0)], [(10.0, 20.0)]),
        ("", [(10.0, 20.0)], []),
        ("", [], []),
        (f"{'9' * 400}.0 1.0", [(10.0, 20.0)], []),
        (f"{'9' * 400}.0 1.0", [(float("inf"), 1.0)], []),
    ],
)
def test_matched_points(answer, truth, matched):
    assert match_points(answer, truth)[0] == matched


@pytest.mark.parametrize(
    ("answer", "truth", "f1"),
    [
        (tag(1.0, 2.0), [(1.0, 2.0)], 1.0),
        (tag(1.0, 2.0), [(1.0, 2.0), (90.0, 90.0)], 2 / 3),
        (tag(1.0, 2.0) + tag(90.0, 90.0), [(1.0, 2.0)], 2 / 3),
        (tag(1.0, 2.0), [(90.0, 90.0)], 0.0),
        ("", [(1.0, 2.0)], 0.0),
        (tag(1.0, 2.0), [], 0.0),
        ("", [], 0.0),
    ],
)
def test_f1(answer, truth, f1):
    found = match_points(answer, truth)[1]
    assert found == pytest.approx(f1, abs=1e-7)
    # The scorer's guard against division by zero is part of its figures.
    assert found < 1.0


def test_f1_of_a_perfect_answer_to_the_last_digit():
    precision = 1 / (1 + 1e-8)
    expected = 2 * precision * precision / (precision + precision + 1e-8)
    assert match_points(tag(1.0, 2.0), [(1.0, 2.0)])[1] == expected != 1.0


coordinates = st.integers(0, 16000).map(lambda tenths: tenths / 10)
points = st.lists(st.tuples(coordinates, coordinates), max_size=6)


@given(points, points)
def test_matches_are_true_points_and_f1_counts_them(predicted, truth):
    matched, f1 = match_points(" ".join(tag(x, y) for x, y in predicted), truth)
    left = list(truth)
    for point in matched:
        left.remove(point)
    total = len(predicted) + len(truth)
    assert f1 == pytest.approx(2 * len(matched) / total if total else 0.0, abs=1e-6)


@given(points)
def test_the_truth_itself_matches_all(truth):
    matched, f1 = match_points(" ".join(tag(x, y) for x, y in truth), truth)
    assert sorted(matched) == sorted(truth)
    assert f1 == pytest.approx(1.0 if truth else 0.0, abs=1e-6)


# Graph


def counted_ids(questions, answers):
    counted = count_answers(questions, answers)
    ids = [
        pair.id for part in ("accuracy", "judge", "language", "match") for pair in counted.of(part)
    ]
    return ids, counted.outside_graph


def test_the_first_question_makes_the_graph_of_its_frame():
    truth = f"{tag(100.0, 100.0)} and {tag(300.0, 300.0)}"
    questions = [
        question("s_f_0", truth=truth, tags=[2]),
        question("s_f_1", f"Is {tag(100.0, 100.0)} red?"),
        question("s_f_2", f"Is {tag(300.0, 300.0)} red?"),
        question("s_f_3", f"Do {tag(100.0, 100.0)} and {tag(300.0, 300.0)} meet?"),
        question("s_f_4", "What is safe?"),
    ]
    answers = {each.id: "No." for each in questions} | {"s_f_0": tag(107.0, 108.0)}
    assert counted_ids(questions, answers) == (["s_f_1", "s_f_4", "s_f_0"], 2)
    answers["s_f_0"] = tag(301.0, 301.0) + tag(100.0, 100.0)
    assert counted_ids(questions, answers) == (["s_f_1", "s_f_2", "s_f_3", "s_f_4", "s_f_0"], 0)


def test_the_graph_holds_the_true_points_not_the_predicted_ones():
    questions = [
        question("s_f_0", truth=tag(100.0, 100.0), tags=[2]),
        question("s_f_1", f"Is {tag(101.0, 101.0)} red?"),
        question("s_f_2", f"Is {tag(100.0, 100.0)} red?"),
    ]
    answers = {"s_f_0": tag(101.0, 101.0), "s_f_1": "", "s_f_2": ""}
    assert counted_ids(questions, answers) == (["s_f_2", "s_f_0"], 1)


def test_the_first_question_counts_whatever_it_asks_and_gets():
    questions = [question("s_f_0", f"Is {tag(1.0, 1.0)} red?", "No.", tags=[0, 3])]
    assert counted_ids(questions, {"s_f_0": ""}) == (["s_f_0", "s_f_0"], 0)


def test_a_first_question_without_tags_makes_the_graph_but_counts_nowhere():
    questions = [
        question("s_f_0", truth=tag(1.0, 1.0), tags=[]),
        question("s_f_1", f"Is {tag(1.0, 1.0)} red?"),
    ]
    assert counted_ids(questions, {"s_f_0": tag(1.0, 1.0), "s_f_1": ""}) == (["s_f_1"], 0)


def test_each_frame_has_its_own_graph():
    questions = [
        question("s_f_0", truth=tag(1.0, 1.0), tags=[2]),
        question("s_g_0", truth=tag(1.0, 1.0), tags=[2]),
        question("s_g_1", f"Is {tag(1.0, 1.0)} red?"),
        question("s_f_1", f"Is {tag(1.0, 1.0)} red?"),
    ]
    answers = {"s_f_0": tag(1.0, 1.0), "s_g_0": "none", "s_f_1": "", "s_g_1": ""}
    assert counted_ids(questions, answers) == (["s_f_1", "s_f_0", "s_g_0"], 1)


def test_half_a_point_in_the_truth_is_refused_by_id():
    with pytest.raises(RecordError, match=r"s_f_0: the true answer holds 1 numbers"):
        count_answers([question("s_f_0", truth="about 0.5")], {"s_f_0": ""})
    questions = [question("s_f_0"), question("s_f_1", "Is 0.5 enough?")]
    with pytest.raises(RecordError, match=r"s_f_1: the question holds 1 numbers"):
        count_answers(questions, {"s_f_0": "", "s_f_1": ""})


# Scores


def full():
    """One answer or two behind every part."""
    return Counted(
        accuracy=[
            Pair("a", "B", "B"),
            Pair("b", "b", "B"),
            Pair("c", "", "B"),
            Pair("d", "B ", "B"),
        ],
        judge=[Pair("e", "x", "y"), Pair("f", "x", "z")],
        language=[Pair("g", "a b c d", "a b c d"), Pair("h", "e f", "e g")],
        match=[Pair("i", tag(1.0, 2.0), tag(1.0, 2.0)), Pair("j", "", tag(1.0, 2.0))],
    )


def test_all_parts_and_the_final_score():
    judge = FixedJudge({"e": 80, "f": 60, "i": 100, "j": 20})
    scores = score_answers(full(), judge)
    assert scores["accuracy"] == 0.25
    assert scores["judge"] == 70.0
    assert scores["match_f1"] == pytest.approx(50, abs=1e-5)
    assert scores["match"] == pytest.approx(55, abs=1e-5)
    assert [pair.id for pair in judge.asked] == ["e", "f", "i", "j"]
    language = language_score(scores["language"])
    bleu = sum(scores["language"][f"Bleu_{n}"] for n in (1, 2, 3, 4)) / 4
    assert language == pytest.approx(
        (bleu + scores["language"]["ROUGE_L"] + scores["language"]["CIDEr"] / 10) / 3
    )
    assert scores["final_score"] == pytest.approx(
        0.4 * 0.7 + 0.2 * language + 0.2 * scores["match"] / 100 + 0.2 * 0.25
    )
    assert scores["missing"] == {}
    assert "partial_score" not in scores


def test_without_a_judge_there_is_no_match_and_no_final_score():
    scores = score_answers(full(), None)
    assert set(scores) == {"accuracy", "language", "match_f1", "partial_score", "missing"}
    thirds = (0.25 + language_score(scores["language"]) + scores["match_f1"] / 100) / 3
    assert scores["partial_score"] == pytest.approx(thirds)
    assert set(scores["missing"]) == {"judge", "match"}


def test_a_part_without_answers_is_none_with_its_reason():
    counted = Counted(accuracy=[Pair("a", "B", "B")], judge=[Pair("e", "x", "y")])
    scores = score_answers(counted, FixedJudge({"e": 40}))
    assert scores == {
        "accuracy": 1.0,
        "judge": 40.0,
        "match": None,
        "match_f1": None,
        "language": None,
        "partial_score": pytest.approx((0.4 * 0.4 + 0.2 * 1.0) / 0.6),
        "missing": {
            "language": "no answer with tag 2 counts",
            "match": "no answer with tag 3 counts",
        },
    }


def test_answers_for_a_judge_alone_have_no_score_without_one():
    scores = score_answers(Counted(judge=[Pair("e", "x", "y")]), None)
    assert scores["partial_score"] is None
    assert set(scores["missing"]) == {"accuracy", "judge", "language", "match"}


def test_nothing_counts():
    with pytest.raises(RecordError, match="nothing to score"):
        score_answers(Counted(), None)
