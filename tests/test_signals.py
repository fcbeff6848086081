"""SIGINT and SIGTERM: noticed, held back, ignored where they were."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from adapt.signals import held_back, stop_requests


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda got, _frame: acted.append(got))
    told: list[str] = []
    with stop_requests(then=lambda: told.append("asked")) as received:
        signal.raise_signal(number)
        assert (received, acted, told) == ([number], [], ["asked"])
        signal.raise_signal(number)
    assert acted == [number]
    signal.signal(number, before)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_held_back_until_the_block_is_done() -> None:
    done: list[str] = []

    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_other_threads_get_no_signals() -> None:
    done: list[str] = []

    def work() -> None:
        with held_back():
            done.append("all of it")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all of it"]
