"""`adapt eval drivelm` from files to report: official figures, every layout, refusals."""

import json
import re
import shutil
from types import SimpleNamespace

import msgspec
import orjson
import pytest

from adapt import cli
from adapt.converters import drivelm
from adapt.coords import NUSCENES
from adapt.errors import RecordError, UsageError
from adapt.eval.drivelm import EvalOptions, run_eval
from adapt.records import Record, complete

TAG = re.compile(r"<(c\d+),(CAM_\w+),(\d+\.\d+),(\d+\.\d+)>")
LISTS = ("perception", "prediction", "planning", "behavior")


@pytest.fixture
def golden(shared):
    """Files and figures of the official scorer."""
    folder = shared / "goldens" / "drivelm_score"
    return SimpleNamespace(
        predictions=folder / "predictions.json",
        truth=folder / "ground_truth.json",
        scores=folder / "expected.json",
        expected=json.loads((folder / "expected.json").read_text()),
        rows=json.loads((folder / "predictions.json").read_text()),
        scenes=json.loads((folder / "ground_truth.json").read_text()),
    )


def to_mosaic(text):
    """Write tags as our records hold them."""

    def rewrite(match):
        name, camera, x, y = match.groups()
        return f"<{name},{camera},{list(NUSCENES.point_to_1000(camera, float(x), float(y)))}>"

    return TAG.sub(rewrite, text)


def our_records(scenes):
    """Return the scenes' questions as records, with an unscored one in front of each frame's."""
    lines = []
    for scene, content in scenes.items():
        for frame, qa in content["key_frames"].items():
            entries = [entry for name in LISTS for entry in qa["QA"][name]]
            entries = [{"Q": "Is it day?", "A": "Yes.", "tag": None}, *entries]
            for number, entry in enumerate(entries, start=-1):
                row = f"{scene}_{frame}_{number if number >= 0 else 99}"
                extra = {"tag": entry["tag"], "question": entry["Q"], "answer": entry["A"]}
                lines.append(
                    {
                        "id": f"drivelm/val/{row}",
                        "image": [f"images/{scene}_{frame}.jpg"],
                        "width_list": [2688],
                        "height_list": [896],
                        "conversations": [
                            {"from": "human", "value": f"<image>\n{to_mosaic(entry['Q'])}"},
                            {"from": "gpt", "value": to_mosaic(entry["A"])},
                        ],
                        "task": "multiview",
                        "source": {"dataset": "drivelm", "split": "val", "row": row},
                        "extra": json.dumps(extra) if entry["tag"] else "",
                    }
                )
    return lines


def our_predictions(lines, answers):
    """Return prediction lines of all records; those not in `answers` answer something."""
    return [
        {
            "id": line["id"],
            "question": line["conversations"][0]["value"],
            "answer": answers.get(line["source"]["row"], "Perhaps."),
            "gt_answer": line["conversations"][1]["value"],
            "source": line["source"],
            "model": "tiny",
            "prompt_tokens": 10,
            "answer_tokens": 2,
            "finish": "stop",
        }
        for line in lines
    ]


def write_lines(path, lines):
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def assert_official(report, expected):
    assert report["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert report["judge"] == pytest.approx(expected["chatgpt"], abs=1e-6)
    assert report["match"] == pytest.approx(expected["match"], abs=1e-6)
    assert {f"val/{key}": value for key, value in report["language"].items()} == pytest.approx(
        expected["language"], abs=1e-6
    )
    assert report["final_score"] == pytest.approx(expected["final_score"], abs=1e-6)
    counts = dict(expected["counts"])
    assert report["counts"] == {"judge": counts.pop("gpt"), **counts}
    assert "partial_score" not in report


# The official figures


def test_official_files_give_the_official_figures(golden, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("java") is None
    out = tmp_path / "report.json"
    report = run_eval(EvalOptions(golden.predictions, golden.truth, golden.scores, json_file=out))
    assert_official(report, golden.expected)
    assert json.loads(out.read_text()) == report
    assert report["questions"] == 66
    assert report["questions"] - report["outside_graph"] == sum(report["counts"].values())


def test_our_layout_gives_the_official_figures(golden, tmp_path):
    lines = our_records(golden.scenes)
    answers = {row["id"]: row["answer"] for row in golden.rows}
    truth = write_lines(tmp_path / "val.jsonl", lines)
    predictions = write_lines(tmp_path / "p.jsonl", our_predictions(lines, answers))
    report = run_eval(EvalOptions(predictions, truth, golden.scores))
    assert_official(report, golden.expected)
    assert report["unused_predictions"] == {"unscored": 9, "unknown": 0}


def test_either_layout_goes_with_either_layout(golden, tmp_path):
    lines = our_records(golden.scenes)
    answers = {row["id"]: row["answer"] for row in golden.rows}
    truth = write_lines(tmp_path / "val.jsonl", lines)
    predictions = write_lines(tmp_path / "p.jsonl", our_predictions(lines, answers))
    of_official = run_eval(EvalOptions(predictions, golden.truth, golden.scores))
    assert_official(of_official, golden.expected)
    assert of_official["unused_predictions"] == {"unscored": 0, "unknown": 9}
    assert_official(
        run_eval(EvalOptions(golden.predictions, truth, golden.scores)), golden.expected
    )


def test_answers_in_mosaic_coordinates_count_the_same(golden, tmp_path):
    lines = our_records(golden.scenes)
    perfect = {line["source"]["row"]: line["conversations"][1]["value"] for line in lines}
    truth = write_lines(tmp_path / "val.jsonl", lines)
    predictions = write_lines(tmp_path / "p.jsonl", our_predictions(lines, perfect))
    report = run_eval(EvalOptions(predictions, truth))
    assert report["outside_graph"] == 0
    assert report["accuracy"] == 1.0
    assert report["match_f1"] == pytest.approx(100, abs=1e-4)
    # Letters alone would be perfect; rounding moves some coordinates, which are words here.
    assert 0.9 < report["language"]["ROUGE_L"] < 1.0


def test_a_missing_judge_leaves_the_other_parts_as_they_are(golden):
    report = run_eval(EvalOptions(golden.predictions, golden.truth))
    expected = golden.expected
    assert report["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    of_match = [
        entry["score"]
        for row in golden.rows
        for entry in expected["judge_scores"]
        if (row["answer"], row["gt_answer"]) == (entry["answer"], entry["ground_truth"])
        and row["gt_answer"].startswith("First")
    ]
    mean = sum(of_match) / len(of_match)
    assert len(of_match) == report["counts"]["match"]
    assert report["match_f1"] == pytest.approx(2 * expected["match"] - mean, abs=1e-6)
    assert not {"judge", "match", "final_score"} & report.keys()
    language = expected["language"]
    bleu = sum(language[f"val/Bleu_{n}"] for n in (1, 2, 3, 4)) / 4
    part = (bleu + language["val/ROUGE_L"] + language["val/CIDEr"] / 10) / 3
    third = (report["accuracy"] + part + report["match_f1"] / 100) / 3
    assert report["partial_score"] == pytest.approx(third, abs=1e-6)


def test_a_judge_that_is_asked_gives_the_official_figures(golden, judge_server, tmp_path):
    entries = golden.expected["judge_scores"]
    scores = {(entry["ground_truth"], entry["answer"]): entry["score"] for entry in entries}

    def answer(path, request):
        content = request["messages"][1]["content"]
        pair = content.split("This is the correct answer: ", 1)[1].split("This is my answer: ", 1)
        return judge_server.reply(str(scores[tuple(pair)]))

    judge_server.answer = answer
    options = EvalOptions(
        golden.predictions,
        golden.truth,
        judge_url=f"{judge_server.url}/v1",
        judge_model="big",
        judge_cache=tmp_path / "cache.jsonl",
    )
    report = run_eval(options)
    assert_official(report, golden.expected)
    assert report["judged_by"] == "big"
    asked = len(judge_server.requests)
    assert asked == len(scores)
    assert run_eval(options) == report
    assert len(judge_server.requests) == asked


# The real annotation, through the converter


def converted(raw, annotations, split, choices="lettered"):
    """Return the converter's records of a real annotation file, as stored."""
    results = drivelm.convert(raw, split, annotations=annotations, choices=choices)
    return [
        json.loads(
            msgspec.json.encode(complete(result, [(2688, 896)], dataset="drivelm", split=split))
        )
        for result in results
        if isinstance(result, Record)
    ]


def perfect(lines):
    """Return the predictions of a model that knows all answers."""
    answers = {line["source"]["row"]: line["conversations"][1]["value"] for line in lines}
    return our_predictions(lines, answers)


@pytest.mark.parametrize("choices", ["lettered", "both"])
def test_converted_training_frames_score_like_the_challenges_own_file(shared, tmp_path, choices):
    folder = shared / "data" / "drivelm_nuscenes"
    lines = converted(folder, folder / "v1_1_train_nus.sample.json", "train", choices)
    truth = write_lines(tmp_path / "train.jsonl", lines)
    predictions = our_predictions(lines, {})
    for line, prediction in zip(lines, predictions, strict=True):
        prediction["answer"] = line["conversations"][1]["value"]
    ours = run_eval(EvalOptions(write_lines(tmp_path / "p.jsonl", predictions), truth))

    challenge = json.loads((folder / "challenge" / "test_eval.json").read_text())
    frames = {line["source"]["row"].rsplit("_", 1)[0] for line in lines}
    rows = []
    for scene, content in challenge.items():
        content["key_frames"] = {
            frame: qa for frame, qa in content["key_frames"].items() if f"{scene}_{frame}" in frames
        }
        for frame, qa in content["key_frames"].items():
            entries = [entry for name in LISTS for entry in qa["QA"][name]]
            rows += [
                {"id": f"{scene}_{frame}_{number}", "question": entry["Q"], "answer": entry["A"]}
                for number, entry in enumerate(entries)
            ]
    (tmp_path / "truth.json").write_text(json.dumps(challenge))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    theirs = run_eval(EvalOptions(tmp_path / "rows.json", tmp_path / "truth.json"))

    assert ours["counts"] == theirs["counts"]
    assert ours["outside_graph"] == theirs["outside_graph"] == 0
    assert ours["accuracy"] == theirs["accuracy"] == 1.0
    assert ours["match_f1"] == pytest.approx(theirs["match_f1"], abs=1e-6)
    assert ours["unused_predictions"]["unscored"] == len(lines) - ours["questions"]


def test_the_challenges_file_through_the_converter_is_recognised_in_itself(shared, tmp_path):
    """Our predictions on the converted test file can be scored against the file as it came."""
    folder = shared / "data" / "drivelm_nuscenes"
    truth = folder / "challenge" / "test_eval.json"
    lines = converted(folder, truth, "val")
    assert lines
    predictions = write_lines(tmp_path / "p.jsonl", perfect(lines))
    scenes = json.loads(truth.read_text())
    seen = {line["source"]["row"].rsplit("_", 1)[0] for line in lines}
    for scene, content in scenes.items():
        frames = content["key_frames"].items()
        content["key_frames"] = {frame: qa for frame, qa in frames if f"{scene}_{frame}" in seen}
    (tmp_path / "truth.json").write_text(json.dumps(scenes))
    of_file = run_eval(EvalOptions(predictions, tmp_path / "truth.json"))
    of_records = run_eval(EvalOptions(predictions, write_lines(tmp_path / "val.jsonl", lines)))
    assert of_file == of_records
    assert of_file["accuracy"] == 1.0
    assert of_file["questions"] == len(lines)


# The command


def small(tmp_path, answer="No.", question="Is it red?", **more):
    """Write one question and its prediction; return the command that scores them."""
    entries = {name: [] for name in LISTS}
    entries["perception"] = [{"Q": "Is it red?", "A": "No.", "tag": [0]}]
    truth = {"s": {"key_frames": {"f": {"QA": entries}}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    rows = [{"id": "s_f_0", "question": question, "answer": answer, **more}]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    files = [
        "--predictions",
        str(tmp_path / "answers.json"),
        "--truth",
        str(tmp_path / "truth.json"),
    ]
    return ["eval", "drivelm", *files]


def test_the_command_prints_a_table_and_writes_the_report(golden, tmp_path, capfd):
    out = tmp_path / "report.json"
    files = ["--predictions", str(golden.predictions), "--truth", str(golden.truth)]
    arguments = [*files, "--judge-scores", str(golden.scores), "--json", str(out)]
    assert cli.run(["eval", "drivelm", *arguments]) == 0
    assert_official(json.loads(out.read_text()), golden.expected)
    printed, errors = capfd.readouterr()
    assert re.search(r"final_score\W+0\.7776", printed)
    assert re.search(r"CIDEr\W+3\.6268\W+9", printed)
    assert "13 of 66 questions do not count" in printed
    assert errors == ""


def test_parts_without_answers_are_said(tmp_path, capfd):
    out = tmp_path / "report.json"
    assert cli.run([*small(tmp_path), "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == {
        "accuracy": 1.0,
        "match_f1": None,
        "language": None,
        "partial_score": 1.0,
        "missing": {
            "judge": "none was asked; give --judge-url or --judge-scores",
            "language": "no answer with tag 2 counts",
            "match": "no answer with tag 3 counts",
        },
        "counts": {"accuracy": 1, "judge": 0, "language": 0, "match": 0},
        "questions": 1,
        "outside_graph": 0,
        "unused_predictions": {"unscored": 0, "unknown": 0},
        "uncompared_questions": 0,
        "judged_by": None,
    }
    printed = capfd.readouterr().out
    assert re.search(r"language\W+none\W+0", printed)
    assert "language: no answer with tag 2 counts" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "Is it blue?"}, "s_f_0: answers another question than the truth's"),
        ({"id": "s_f_1"}, "1 of 1 questions have no prediction, first s_f_0"),
        ({"answer": 5}, "$[0].answer"),
    ],
)
def test_files_that_do_not_belong_together_end_with_status_2(tmp_path, capfd, change, message):
    arguments = small(tmp_path, **change)
    assert cli.run([*arguments, "--json", str(tmp_path / "report.json")]) == 2
    printed, errors = capfd.readouterr()
    assert message in errors
    assert errors.count("\n") == 1
    assert printed == ""
    assert not (tmp_path / "report.json").exists()


def test_a_judge_out_of_reach_ends_with_status_4(tmp_path, capfd, judge_server):
    judge_server.answer = lambda path, request: judge_server.reply(status=400, raw=b"no such model")
    arguments = small(tmp_path)
    truth = json.loads((tmp_path / "truth.json").read_text())
    truth["s"]["key_frames"]["f"]["QA"]["perception"][0]["tag"] = [1]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert cli.run([*arguments, "--judge-url", judge_server.url]) == 4
    assert "400 Bad Request: no such model" in capfd.readouterr().err
    assert cli.run([*arguments, "--judge-url", "http://127.0.0.1:9", "--judge-retries", "0"]) == 4
    assert "out of reach" in capfd.readouterr().err


def test_the_cache_lies_beside_the_predictions_and_the_key_comes_from_the_environment(
    tmp_path, judge_server, monkeypatch
):
    monkeypatch.setenv("ADAPT_JUDGE_KEY", "secret")
    arguments = small(tmp_path)
    text = (tmp_path / "truth.json").read_text().replace('"tag": [0]', '"tag": [1]')
    (tmp_path / "truth.json").write_text(text)
    assert cli.run([*arguments, "--judge-url", judge_server.url, "--judge-model", "m"]) == 0
    assert judge_server.requests[0][1]["model"] == "m"
    assert judge_server.requests[0][2]["Authorization"] == "Bearer secret"
    cache = (tmp_path / "answers.json.judge.jsonl").read_text()
    assert json.loads(cache)["score"] == 50.0
    assert "secret" not in cache


def test_two_judges_and_senseless_numbers_are_refused(tmp_path):
    small(tmp_path)
    files = {"predictions": tmp_path / "answers.json", "truth": tmp_path / "truth.json"}
    with pytest.raises(UsageError, match="exclude each other"):
        run_eval(EvalOptions(**files, judge_scores=files["truth"], judge_url="http://h"))
    for change in ({"judge_workers": 0}, {"judge_retries": -1}, {"judge_timeout_s": 0.0}):
        with pytest.raises(UsageError, match="--judge-workers"):
            run_eval(EvalOptions(**files, judge_url="http://h", **change))


def test_a_pair_without_a_recorded_score_is_named(golden, tmp_path):
    scores = golden.expected["judge_scores"][1:]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    lost = golden.expected["judge_scores"][0]
    with pytest.raises(RecordError, match=re.escape(repr(lost["answer"]))):
        run_eval(EvalOptions(golden.predictions, golden.truth, tmp_path / "scores.json"))
