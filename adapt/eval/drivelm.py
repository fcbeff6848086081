"""`adapt eval drivelm`: the score of the DriveLM challenge, from two files.

    truth       --> drivelm_truth        which questions are scored
    predictions --> drivelm_predictions  the same questions? answers in camera pixels
                --> drivelm_score        graph rule, parts, weights  <-- judge, metrics
                --> table on screen, JSON report

Report (--json), percentages where the challenge has them:

    {"accuracy": 0.6, "judge": 91.6, "match": 76.7, "match_f1": 57.2,
     "language": {"Bleu_1": 0.89, ..., "ROUGE_L": 0.89, "CIDEr": 3.63}, "final_score": 0.78,
     "counts": {"accuracy": 20, "judge": 20, "language": 9, "match": 4}, "missing": {},
     "questions": 66, "outside_graph": 13, ...}

A part that no answer counts for is null, and `missing` says why. Without a judge there is no
`judge`, `match` or `final_score`, but `match_f1` (mean F1, 0 to 100) and `partial_score`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.errors import UsageError
from adapt.eval.drivelm_predictions import pair_up, read_predictions
from adapt.eval.drivelm_score import count_answers, score_answers
from adapt.eval.drivelm_truth import read_truth
from adapt.eval.endpoint import EndpointOptions
from adapt.eval.judge import EndpointJudge, Judge, RecordedJudge
from adapt.jsonl import write_json

KEY_VARIABLE = "ADAPT_JUDGE_KEY"


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What to score and who judges.

    Args:
        predictions: Answers: of `adapt predict` or in the challenge's layout.
        truth: Truth: the challenge's JSON or our records.
        judge_scores: Recorded judge scores, instead of asking.
        judge_url: OpenAI-compatible endpoint to ask.
        judge_model: Model name sent to it.
        judge_cache: Replies of the judge (default: beside the predictions, NAME.judge.jsonl).
        judge_workers: Requests at one time.
        judge_timeout_s: Seconds until a request counts as lost.
        judge_retries: Further tries of a request.
        json_file: Where to write the report.
    """

    predictions: Path
    truth: Path
    judge_scores: Path | None = None
    judge_url: str | None = None
    judge_model: str = "judge"
    judge_cache: Path | None = None
    judge_workers: int = 8
    judge_timeout_s: float = 60.0
    judge_retries: int = 4
    json_file: Path | None = None


def run_eval(options: EvalOptions) -> dict[str, Any]:
    """Score predictions, print the table, write the report and return it.

    Raises:
        UsageError: Options that exclude each other.
        SourceError: A file is missing or not JSON.
        RecordError: The files do not belong together: a question differs or has no prediction.
        EnvironmentFault: Java or the judge is out of reach; the judge replied no number.
    """
    judge = open_judge(options)
    truth = read_truth(options.truth)
    paired = pair_up(truth, read_predictions(options.predictions), options.predictions)
    counted = count_answers(truth.questions, paired.answers)
    report = score_answers(counted, judge) | {
        "counts": counted.counts(),
        "questions": len(truth.questions),
        "outside_graph": counted.outside_graph,
        "unused_predictions": {"unscored": paired.unscored, "unknown": paired.unknown},
        "uncompared_questions": paired.without_question,
        "judged_by": _judged_by(options),
    }
    if options.json_file is not None:
        write_json(options.json_file, report)
    print_report(report)
    return report


def open_judge(options: EvalOptions) -> Judge | None:
    """Return the judge that the options name, None for none.

    Raises:
        UsageError: Two judges, or a number that makes no sense.
        AdaptError: What `RecordedJudge` and `EndpointJudge` raise.
    """
    if options.judge_scores is not None and options.judge_url is not None:
        raise UsageError("--judge-scores and --judge-url exclude each other; give one of them")
    if options.judge_scores is not None:
        return RecordedJudge(options.judge_scores)
    if options.judge_url is None:
        return None
    if options.judge_workers < 1 or options.judge_retries < 0 or options.judge_timeout_s <= 0:
        raise UsageError(
            "--judge-workers and --judge-timeout must be above 0, --judge-retries 0 or more"
        )
    endpoint = EndpointOptions(
        url=options.judge_url,
        model=options.judge_model,
        key=os.environ.get(KEY_VARIABLE, ""),
        timeout_s=options.judge_timeout_s,
        retries=options.judge_retries,
    )
    name = f"{options.predictions.name}.judge.jsonl"
    cache = options.judge_cache or options.predictions.with_name(name)
    return EndpointJudge(endpoint, cache, workers=options.judge_workers)


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report as a table, and below it what was not counted."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("part", Column("score", justify="right"), Column("answers", justify="right"))
    for label, score, answers in _rows(report):
        table.add_row(label, score, answers)
    console = Console(highlight=False)
    console.print(table)
    for note in _notes(report):
        console.print(note, markup=False, soft_wrap=True)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    counts = report["counts"]
    for part in ("accuracy", "judge", "match", "match_f1"):
        answers = counts["match" if part == "match_f1" else part]
        if part in report:
            yield part, _shown(report[part]), str(answers)
    for key, value in (report["language"] or {"language": None}).items():
        yield key, _shown(value), str(counts["language"])
    for key in ("final_score", "partial_score"):
        if key in report:
            yield key, _shown(report[key]), ""


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for everything that the score leaves out."""
    for part, reason in report["missing"].items():
        yield f"{part}: {reason}"
    if "partial_score" in report:
        yield "partial_score: the official weights over the parts that are there; no final score"
    if report["outside_graph"]:
        yield (
            f"{report['outside_graph']} of {report['questions']} questions do not count: their "
            f"objects were not found by the answer to their frame's first question"
        )
    unused = report["unused_predictions"]
    if unused["unscored"]:
        yield f"{unused['unscored']} predictions answer questions that the challenge does not score"
    if unused["unknown"]:
        yield f"{unused['unknown']} predictions have ids that the truth does not hold: ignored"
    if report["uncompared_questions"]:
        yield (
            f"{report['uncompared_questions']} predictions hold no question to compare with the "
            f"truth's: matched by id alone"
        )


def _judged_by(options: EvalOptions) -> str | None:
    if options.judge_scores is not None:
        return "recorded scores"
    return options.judge_model if options.judge_url is not None else None
