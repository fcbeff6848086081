"""The judge of the DriveLM challenge: a language model that rates an answer from 0 to 100.

    recorded scores (--judge-scores)      RecordedJudge    reads a file, asks nobody
    OpenAI-compatible endpoint (--judge-url)  EndpointJudge    asks, retries, caches

Prompt:  the words of OpenDriveLab/DriveLM, challenge/gpt_eval.py (they are data: scores compare
         only under the same words). Temperature 0 instead of the challenge's 0.6, so that a score
         can be repeated.
Cache:   JSONL, a line a reply: {"answer", "ground_truth", "score", "url", "model", "prompt"};
         such a file is also taken as recorded scores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from adapt.errors import EnvironmentFault, RecordError
from adapt.eval.endpoint import Endpoint, EndpointOptions
from adapt.jsonl import disk_fault, read_bytes, read_json
from adapt.progress import progress

SYSTEM_TEXT = "an evaluator who rates my answer based on the correct answer"
PROMPT = (
    "Rate my answer based on the correct answer out of 100, with higher scores indicating that "
    "the answer is closer to the correct answer, and you should be accurate to single digits "
    "like 62, 78, 41,etc. Output the number only"
    "This is the correct answer: {truth}This is my answer: {answer}"
)
PROMPT_NAME = "drivelm-challenge-2024"
HIGHEST = 100.0

_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*", re.ASCII)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer to rate against the true one; `id` names the question in messages."""

    id: str
    answer: str
    truth: str

    @property
    def key(self) -> tuple[str, str]:
        """What a score belongs to."""
        return self.answer, self.truth


class Judge(Protocol):
    """Rates answers from 0 to 100."""

    def rate(self, pairs: Sequence[Pair]) -> list[float]:
        """Return a score for each pair, in their order."""
        ...


class RecordedJudge:
    """Scores read from a file.

    Args:
        path: {"judge_scores": [{"answer", "ground_truth", "score"}, ...]}, the bare list, or one
            entry a line (the cache of an endpoint).

    Raises:
        SourceError: The file is missing or not JSON.
        RecordError: An entry is malformed, or a pair has two different scores.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scores: dict[tuple[str, str], float] = {}
        for place, entry in _recorded_entries(path):
            key, score = _read_entry(place, entry)
            if self._scores.setdefault(key, score) != score:
                raise RecordError(
                    f"{place}: answer {key[0]!r} to truth {key[1]!r} has the scores "
                    f"{self._scores[key]:g} and {score:g}; expected one: remove the other"
                )

    def rate(self, pairs: Sequence[Pair]) -> list[float]:
        """Return a score for each pair, in their order.

        Raises:
            RecordError: A pair is not in the file; names the first and counts the rest.
        """
        missing = [pair for pair in pairs if pair.key not in self._scores]
        if missing:
            first = missing[0]
            raise RecordError(
                f"{self._path}: {len(missing)} of {len(pairs)} pairs have no recorded score; first "
                f"{first.id}: answer {first.answer!r}, ground_truth {first.truth!r}; add them, or "
                f"ask a judge with --judge-url"
            )
        return [self._scores[pair.key] for pair in pairs]


class EndpointJudge:
    """Scores asked of an OpenAI-compatible endpoint, each distinct pair once.

    Args:
        options: The endpoint.
        cache: JSONL file of replies; read first, added to as replies arrive.
        workers: Requests at one time.
    """

    def __init__(self, options: EndpointOptions, cache: Path, *, workers: int = 8) -> None:
        self._options = options
        self._cache = cache
        self._workers = workers
        self._stamp = {"url": Endpoint(options).url, "model": options.model, "prompt": PROMPT_NAME}

    def rate(self, pairs: Sequence[Pair]) -> list[float]:
        """Return a score for each pair, in their order; replies are cached as they arrive.

        Raises:
            EnvironmentFault: The judge is out of reach, refuses, or replies something that is no
                number from 0 to 100; the cache keeps the replies before.
            RecordError: The cache is damaged.
        """
        scores = self._read_cache()
        open_pairs = list({pair.key: pair for pair in pairs if pair.key not in scores}.values())
        if open_pairs:
            self._ask_all(open_pairs, scores)
        return [scores[pair.key] for pair in pairs]

    def _ask_all(self, pairs: list[Pair], scores: dict[tuple[str, str], float]) -> None:
        endpoint = Endpoint(self._options)
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="judge")
        try:
            with self._cache.open("ab") as file, progress("judge", len(pairs), "answers") as done:
                replies = {pool.submit(_ask, endpoint, pair): pair for pair in pairs}
                for pair, score in _collect(replies, endpoint):
                    scores[pair.key] = score
                    entry = {"answer": pair.answer, "ground_truth": pair.truth, "score": score}
                    file.write(orjson.dumps({**entry, **self._stamp}) + b"\n")
                    file.flush()
                    done(1)
        except OSError as error:
            raise disk_fault(error, self._cache) from error
        finally:
            # Waits between tries end early; requests under way end with their own time limit.
            endpoint.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            if self._cache.exists() and self._cache.stat().st_size == 0:
                self._cache.unlink()

    def _read_cache(self) -> dict[tuple[str, str], float]:
        if not self._cache.exists() or self._cache.stat().st_size == 0:
            return {}
        _cut_torn_line(self._cache)
        scores = {}
        for place, entry in _read_jsonl(self._cache):
            key, score = _read_entry(place, entry)
            if {name: entry.get(name) for name in self._stamp} == self._stamp:
                scores[key] = score
        return scores


def _collect(
    replies: Mapping[Future[float], Pair], endpoint: Endpoint
) -> Iterator[tuple[Pair, float]]:
    """Yield scores as they arrive; after a failure those still under way, then raise it."""
    failure: BaseException | None = None
    for reply in as_completed(replies):
        if reply.cancelled():
            continue
        error = reply.exception()
        if error is None:
            yield replies[reply], reply.result()
        elif failure is None:
            failure = error
            endpoint.stop()
            for other in replies:
                other.cancel()
    if failure is not None:
        raise failure


def _ask(endpoint: Endpoint, pair: Pair) -> float:
    text = PROMPT.format(truth=pair.truth, answer=pair.answer)
    reply = endpoint.ask(
        [{"role": "system", "content": SYSTEM_TEXT}, {"role": "user", "content": text}]
    )
    score = parse_score(reply)
    if score is None:
        raise EnvironmentFault(
            f"{endpoint.url}: the judge replied {_short(reply)!r} for {pair.id}: answer "
            f"{pair.answer!r}, ground_truth {pair.truth!r}; expected a number from 0 to 100 and "
            f"nothing else: take another --judge-model, or record this score by hand"
        )
    return score


def parse_score(reply: str) -> float | None:
    """Return the number that a judge's reply is, None when it is no number from 0 to 100.

    Thoughts of a reasoning model, between `<think>` and `</think>`, are left out first.

    >>> parse_score(" 87\\n"), parse_score("about 87"), parse_score("187")
    (87.0, None, None)
    """
    match = _NUMBER.fullmatch(_THOUGHTS.sub("", reply))
    if match is None or float(match[1]) > HIGHEST:
        return None
    return float(match[1])


def _recorded_entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    value = read_json(path)
    if isinstance(value, dict):
        value = value.get("judge_scores")
    if not isinstance(value, list):
        raise RecordError(
            f"{path}: holds no judge scores; expected a list of "
            f'{{"answer", "ground_truth", "score"}}, or an object with it under "judge_scores"'
        )
    return [(f"{path}: judge_scores[{index}]", entry) for index, entry in enumerate(value)]


def _read_jsonl(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    entries = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            entries.append((f"{path}:{number}", orjson.loads(line)))
        except orjson.JSONDecodeError as error:
            raise RecordError(
                f"{path}:{number}: not valid JSON ({error.msg.lower()}); remove the line"
            ) from error
    return entries


def _read_entry(place: str, entry: object) -> tuple[tuple[str, str], float]:
    """Return ((answer, truth), score) of a recorded entry, its score 0 to 100."""
    if not isinstance(entry, dict):
        raise RecordError(f"{place}: found {entry!r}, expected an object")
    answer, truth, score = (entry.get(key) for key in ("answer", "ground_truth", "score"))
    if not isinstance(answer, str) or not isinstance(truth, str):
        raise RecordError(f'{place}: expected texts under "answer" and "ground_truth"')
    number = parse_score(score) if isinstance(score, str) else score
    if not isinstance(number, int | float) or isinstance(number, bool) or not _in_range(number):
        raise RecordError(
            f"{place}: answer {answer!r} to truth {truth!r} has the score {score!r}; "
            f"expected a number from 0 to 100"
        )
    return (answer, truth), float(number)


def _in_range(number: float) -> bool:
    return math.isfinite(number) and 0 <= number <= HIGHEST


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line without its end: a reply that was being written when a run was killed."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
