"""Pauses of the training benchmark: who is stopped, when, and that all go on afterwards."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.pauses import Pauses, actors, stopped
from bench.training_jobs import share_trained


def child(title: str = "sleeper") -> psutil.Process:
    """A process under a name that does nothing."""
    command = [title, "-I", "-S", "-c", "import time; time.sleep(60)"]
    return psutil.Popen(command, executable=sys.executable)


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    process = child()
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def gone() -> psutil.Process:
    process = child()
    process.kill()
    process.wait()
    return process


def is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


def test_processes_are_stopped_within_and_go_on_afterwards(sleeper: psutil.Process) -> None:
    with stopped([sleeper]):
        assert is_stopped(sleeper)

    assert not is_stopped(sleeper)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_they_go_on_where_something_is_raised(
    sleeper: psutil.Process, error: type[BaseException]
) -> None:
    with pytest.raises(error), stopped([sleeper]):
        raise error

    assert not is_stopped(sleeper)


def test_processes_that_are_gone_are_skipped(sleeper: psutil.Process, gone: psutil.Process) -> None:
    with stopped([gone, sleeper]):
        assert is_stopped(sleeper)

    assert not is_stopped(sleeper)


def test_a_process_that_goes_while_it_is_stopped_keeps_no_other_stopped(
    sleeper: psutil.Process,
) -> None:
    goes = child()

    with stopped([goes, sleeper]):
        goes.kill()
        goes.wait()

    assert not is_stopped(sleeper)


def test_actors_are_told_by_the_title_that_ray_gives_them() -> None:
    titles = ["ray::WorkerActor.run", "ray::ServerActor", "ray::IDLE", "raylet", "WorkerActor"]
    children = [child(title) for title in titles]
    try:
        assert {process.pid for process in actors()} == {process.pid for process in children[:2]}
    finally:
        for process in children:
            process.kill()
            process.wait()


def test_what_is_measured_is_measured_while_they_are_stopped(sleeper: psutil.Process) -> None:
    twice = threading.Semaphore(0)

    def measure() -> float:
        twice.release()
        return float(is_stopped(sleeper))

    with Pauses(measure, lambda: [sleeper], lambda: True, every_seconds=0.01) as pauses:
        assert twice.acquire(timeout=30)
        assert twice.acquire(timeout=30)

    assert set(pauses.measured) == {1.0}
    assert len(pauses.measured) >= 2
    assert pauses.seconds > 0
    assert not is_stopped(sleeper)


def test_nobody_is_stopped_when_it_is_not_wanted(sleeper: psutil.Process) -> None:
    asked = threading.Event()

    def wanted() -> bool:
        asked.set()
        return False

    with Pauses(lambda: 1.0, lambda: [sleeper], wanted, every_seconds=0.01) as pauses:
        assert asked.wait(timeout=30)

    assert (pauses.measured, pauses.seconds) == ([], 0.0)


def test_an_error_of_the_measuring_is_raised_at_the_end(sleeper: psutil.Process) -> None:
    failed = threading.Event()

    def measure() -> float:
        failed.set()
        raise RuntimeError("no figure")

    with (
        pytest.raises(RuntimeError, match="no figure"),
        Pauses(measure, lambda: [sleeper], lambda: True, every_seconds=0.01),
    ):
        assert failed.wait(timeout=30)

    assert not is_stopped(sleeper)


def line(*, time: float, seconds: float, samples: int) -> str:
    figures: dict[str, Any] = {"time": time, "train_seconds": seconds, "samples": samples}
    return json.dumps({**figures, "samples_dropped": 10, "samples_skipped": 0}) + "\n"


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (None, 0.0),
        ("", 0.0),
        (line(time=100.0, seconds=0.0, samples=0), 0.0),
        # 100 samples in 4 seconds, and one second more.
        (line(time=99.0, seconds=4.0, samples=90), 0.125),
        (line(time=99.0, seconds=4.0, samples=90) + '{"time": 1', 0.125),
        (line(time=90.0, seconds=4.0, samples=90) + line(time=100.0, seconds=9, samples=990), 1.0),
    ],
)
def test_the_share_that_is_trained_goes_by_the_last_whole_line(
    tmp_path: Path, text: str | None, share: float
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    if text is not None:
        metrics.write_text(text)

    assert share_trained(metrics, 1000, now=100.0) == pytest.approx(share)
