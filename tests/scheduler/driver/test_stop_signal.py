"""The first signal is a wish, the second one interrupts."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from scheduler.driver.stop_signal import StopSignal
from scheduler.driver.supervisor import Supervisor


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_interrupts(first: signal.Signals) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    stop = StopSignal()

    def asked_twice() -> None:
        with stop.awaited():
            os.kill(os.getpid(), first)
            assert stop.came
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        asked_twice()
    assert signal.getsignal(first) is signal.default_int_handler


def test_handlers_of_others_are_left_alone() -> None:
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    stop = StopSignal()

    with stop.awaited():
        os.kill(os.getpid(), signal.SIGTERM)

    assert (got, stop.came) == ([signal.SIGTERM], False)


class AtItsEnd(Supervisor):
    """A supervisor of a job that is trained when the signal comes."""

    def __init__(self) -> None:
        self._stop = StopSignal()

    def poll(self) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(trained=True, cut=None)

    def report(self, status: Any) -> None:
        pass

    def _save_and_stop(self) -> NoReturn:
        raise KeyboardInterrupt


def test_a_signal_that_comes_with_the_last_step_is_not_lost() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    with pytest.raises(KeyboardInterrupt):
        AtItsEnd().until_trained()
