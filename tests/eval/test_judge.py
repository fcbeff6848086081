"""The judge: recorded scores, and an endpoint with its cache, against a real server."""

import json
import socket
import threading

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.errors import EnvironmentFault, RecordError, SourceError
from adapt.eval.endpoint import EndpointOptions
from adapt.eval.judge import PROMPT_NAME, EndpointJudge, Pair, RecordedJudge, parse_score

ONE = Pair("frame_1", "Turn left.", "Turn right.")
TWO = Pair("frame_2", "Stop. {answer} {0}", "Stop.")
SAME_AS_ONE = Pair("frame_3", "Turn left.", "Turn right.")


def endpoint_judge(url, tmp_path, *, model="tiny", retries=3, workers=4):
    options = EndpointOptions(url, model, backoff_s=0.001, retries=retries)
    return EndpointJudge(options, tmp_path / "judge.jsonl", workers=workers)


def cached(tmp_path):
    lines = (tmp_path / "judge.jsonl").read_bytes().splitlines()
    return {(entry["answer"], entry["score"]) for entry in map(orjson.loads, lines)}


def write(path, value):
    path.write_text(json.dumps(value))
    return path


# Numbers in replies


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("87", 87.0),
        (" 87\n", 87.0),
        ("87.5", 87.5),
        ("87.", 87.0),
        (".5", 0.5),
        ("0", 0.0),
        ("100", 100.0),
        ("<think>is it 3?\nno</think>\n42", 42.0),
    ],
)
def test_a_number_is_read(reply, score):
    assert parse_score(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        *["", ".", "six", "Score: 87", "87/100", "87%", "8 7", "<think>42"],
        *["-1", "101", "100.5", "1e1", "nan", "inf", "٤٢"],
    ],
)
def test_anything_else_is_no_number(reply):
    assert parse_score(reply) is None


@given(st.integers(0, 100_00).map(lambda cents: cents / 100))
def test_every_score_survives_being_written(score):
    assert parse_score(f"\t{score}\n") == score


# Recorded scores


@pytest.mark.parametrize("layout", ["object", "list", "lines"])
def test_recorded_scores_in_every_layout(tmp_path, layout):
    entries = [
        {"answer": ONE.answer, "ground_truth": ONE.truth, "score": 30},
        {"answer": TWO.answer, "ground_truth": TWO.truth, "score": "99.5", "note": "kept"},
    ]
    path = tmp_path / ("scores.jsonl" if layout == "lines" else "scores.json")
    if layout == "lines":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        write(path, {"judge_scores": entries} if layout == "object" else entries)
    assert RecordedJudge(path).rate([TWO, ONE, SAME_AS_ONE]) == [99.5, 30.0, 30.0]


def test_a_pair_without_a_score_is_named(tmp_path):
    path = write(tmp_path / "s.json", [{"answer": "", "ground_truth": "x", "score": 1}])
    with pytest.raises(RecordError, match=r"2 of 3 .*frame_1.*'Turn left\.'.*'Turn right\.'"):
        RecordedJudge(path).rate([Pair("frame_0", "", "x"), ONE, SAME_AS_ONE])


def test_the_same_pair_twice_needs_the_same_score(tmp_path):
    entry = {"answer": "a", "ground_truth": "b", "score": 5}
    assert RecordedJudge(write(tmp_path / "s.json", [entry, entry])).rate([Pair("", "a", "b")]) == [
        5.0
    ]
    with pytest.raises(RecordError, match=r"judge_scores\[1\].*scores 5 and 6"):
        RecordedJudge(write(tmp_path / "s.json", [entry, {**entry, "score": 6}]))


@pytest.mark.parametrize("score", [None, True, "good", -1, 101, [5], "1e1"])
def test_a_score_that_is_no_number_is_refused_with_its_pair(tmp_path, score):
    path = write(tmp_path / "s.json", [{"answer": "a", "ground_truth": "b", "score": score}])
    with pytest.raises(RecordError, match=r"judge_scores\[0\]: answer 'a' to truth 'b'"):
        RecordedJudge(path)


@pytest.mark.parametrize("value", [5, {}, {"judge_scores": {}}, [5], [{"answer": "a"}]])
def test_a_file_of_another_shape_is_refused(tmp_path, value):
    with pytest.raises(RecordError, match="expected"):
        RecordedJudge(write(tmp_path / "s.json", value))


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        RecordedJudge(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('[{"answer"')
    with pytest.raises(SourceError, match="cut off"):
        RecordedJudge(tmp_path / "cut.json")
    (tmp_path / "cut.jsonl").write_text('{"answer": "a", "ground_truth": "b", "score": 1}\n{"an')
    with pytest.raises(RecordError, match=r"cut\.jsonl:2"):
        RecordedJudge(tmp_path / "cut.jsonl")


# An endpoint


def test_the_challenges_words_are_sent(judge_server, tmp_path):
    assert endpoint_judge(judge_server.url, tmp_path).rate([TWO]) == [50.0]
    assert judge_server.requests[0][1] == {
        "model": "tiny",
        "temperature": 0,
        "messages": [
            {
                "role": "system",
                "content": "an evaluator who rates my answer based on the correct answer",
            },
            {
                "role": "user",
                "content": "Rate my answer based on the correct answer out of 100, with higher "
                "scores indicating that the answer is closer to the correct answer, and you should "
                "be accurate to single digits like 62, 78, 41,etc. Output the number only"
                "This is the correct answer: Stop.This is my answer: Stop. {answer} {0}",
            },
        ],
    }


def test_each_distinct_pair_is_asked_once_and_kept(judge_server, tmp_path):
    def answer(path, request):
        is_one = "Turn" in request["messages"][1]["content"]
        return judge_server.reply("30" if is_one else "90")

    judge_server.answer = answer
    judge = endpoint_judge(judge_server.url, tmp_path)
    assert judge.rate([ONE, TWO, SAME_AS_ONE]) == [30.0, 90.0, 30.0]
    assert len(judge_server.requests) == 2
    assert cached(tmp_path) == {(ONE.answer, 30.0), (TWO.answer, 90.0)}
    line = (tmp_path / "judge.jsonl").read_bytes().splitlines()[0]
    assert (
        orjson.loads(line).items()
        >= {
            "url": f"{judge_server.url}/v1/chat/completions",
            "model": "tiny",
            "prompt": PROMPT_NAME,
        }.items()
    )


def test_the_cache_answers_without_a_server(judge_server, tmp_path):
    endpoint_judge(judge_server.url, tmp_path).rate([ONE, TWO])

    def fail(path, request):
        raise AssertionError("asked again")

    judge_server.answer = fail
    before = (tmp_path / "judge.jsonl").read_bytes()
    assert endpoint_judge(judge_server.url, tmp_path).rate([TWO, ONE]) == [50.0, 50.0]
    assert (tmp_path / "judge.jsonl").read_bytes() == before
    assert len(judge_server.requests) == 2
    assert RecordedJudge(tmp_path / "judge.jsonl").rate([TWO]) == [50.0]


def test_another_model_is_asked_anew(judge_server, tmp_path):
    endpoint_judge(judge_server.url, tmp_path).rate([ONE])
    judge_server.answer = lambda path, request: judge_server.reply("60")
    assert endpoint_judge(judge_server.url, tmp_path, model="big").rate([ONE]) == [60.0]
    assert endpoint_judge(judge_server.url, tmp_path).rate([ONE]) == [50.0]


def test_too_many_requests_then_a_reply(judge_server, tmp_path):
    judge_server.answer = lambda path, request: (
        judge_server.reply(status=429) if len(judge_server.requests) < 3 else judge_server.reply()
    )
    assert endpoint_judge(judge_server.url, tmp_path).rate([ONE]) == [50.0]
    assert len(judge_server.requests) == 3


def test_a_reply_that_is_no_number_names_the_pair(judge_server, tmp_path):
    judge_server.answer = lambda path, request: judge_server.reply("I would say 80 " + "x" * 500)
    with pytest.raises(EnvironmentFault) as caught:
        endpoint_judge(judge_server.url, tmp_path).rate([ONE])
    message = str(caught.value)
    assert "'I would say 80 xxx" in message
    assert "x" * 201 not in message
    assert "frame_1: answer 'Turn left.', ground_truth 'Turn right.'" in message
    assert len(judge_server.requests) == 1
    assert not (tmp_path / "judge.jsonl").exists()


def test_replies_under_way_at_a_failure_are_kept(judge_server, tmp_path):
    both_asked = threading.Barrier(2)

    def answer(path, request):
        return judge_server.reply("?" if "Turn" in request["messages"][1]["content"] else "90")

    judge_server.answer = answer
    judge_server.before = both_asked.wait
    with pytest.raises(EnvironmentFault, match="frame_1"):
        endpoint_judge(judge_server.url, tmp_path, workers=2).rate([ONE, TWO])
    assert cached(tmp_path) == {(TWO.answer, 90.0)}


def test_a_reply_cut_off_by_a_kill_is_asked_again(judge_server, tmp_path):
    endpoint_judge(judge_server.url, tmp_path, workers=1).rate([ONE, TWO])
    path = tmp_path / "judge.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert endpoint_judge(judge_server.url, tmp_path).rate([ONE, TWO]) == [50.0, 50.0]
    assert len(judge_server.requests) == 3
    assert path.read_bytes() == whole


def test_a_damaged_cache_is_refused(judge_server, tmp_path):
    (tmp_path / "judge.jsonl").write_text("not a reply\n")
    with pytest.raises(RecordError, match=r"judge\.jsonl:1"):
        endpoint_judge(judge_server.url, tmp_path).rate([ONE])
    assert judge_server.requests == []


def test_a_cache_that_cannot_be_written(judge_server, tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        endpoint_judge(judge_server.url, tmp_path / "none").rate([ONE])


def test_nobody_listens(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(EnvironmentFault, match="out of reach") as caught:
        endpoint_judge(f"http://127.0.0.1:{port}", tmp_path, retries=1).rate([ONE, TWO])
    assert caught.value.exit_status == 4
    assert not (tmp_path / "judge.jsonl").exists()
