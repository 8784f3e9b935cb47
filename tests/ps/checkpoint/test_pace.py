"""A cut is spread over its time, and written at once where somebody waits for it."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ps.checkpoint.pace import LEAST_RATE, Pace


class Waits:
    """What a pace waits for, in place of an event that is never set, and of a clock that stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        monkeypatch.setattr("ps.checkpoint.pace.threading.Event", lambda: self)
        monkeypatch.setattr("ps.checkpoint.pace.time.monotonic", lambda: 0.0)

    def wait(self, seconds: float) -> None:
        self.seconds.append(seconds)


def test_work_is_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    pace = Pace(10.0)
    pace.begin(40 * LEAST_RATE)

    for _ in range(4):
        pace.did(10 * LEAST_RATE)

    assert waits.seconds == [2.5, 5.0, 7.5, 10.0]


def test_little_work_takes_less_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    pace = Pace(1000.0)
    pace.begin(2 * LEAST_RATE)

    pace.did(2 * LEAST_RATE)

    assert waits.seconds == [2.0]


def test_what_is_urgent_does_not_wait_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    pace = Pace(10.0)
    pace.begin(10 * LEAST_RATE)

    pace.did(3 * LEAST_RATE, urgent=True)
    pace.did(LEAST_RATE)

    assert waits.seconds == [4.0]


def test_without_time_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    pace = Pace()
    pace.begin(1000)
    pace.did(500)

    assert waits.seconds == []


def test_a_cut_that_waits_goes_on_at_once_when_somebody_is_in_a_hurry(
    cut_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.pace.LEAST_RATE", 1)
    cut_job.train(3)
    pace = Pace(1e6)
    paths: list[Path] = []
    thread = threading.Thread(
        target=lambda: paths.append(cut_job.cut(changed_only=False, pace=pace)), daemon=True
    )
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()

    pace.hurry()
    thread.join(30)

    assert [path.name for path in paths] == ["full-000000000003"]


def test_what_was_saved_of_rows_that_changed_is_not_left_to_pile_up(
    cut_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps.checkpoint.pace.LEAST_RATE", 1)
    monkeypatch.setattr("ps.checkpoint.cut.MOST_SAVED_BYTES", -1)
    cut_job.train(3)

    assert cut_job.cut(changed_only=False, pace=Pace(1e6)).name == "full-000000000003"
