"""The thread that feeds a plan: when a stream ends, and what windows are told."""

import math
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.growing_plan import PlanState
from scheduler.driver.stream_feed import StreamFeed
from scheduler.run.plan_log import PlanLog
from worker.data.arrived import NewFile
from worker.data.plan import FilePlan
from worker.data.streams import Lag

B = 10


class Source:
    """Arrivals, and the stream below them, of files of a batch each."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.position: dict[str, Any] = {}
        self.skipped = (0, 0)
        self.first_refused: list[str] = []
        self.took_all = False
        self.figures = None
        self.waits = False
        self.is_over = False

    def take(self, *, most: int, now: float) -> list[NewFile]:
        count = min(most, self.waiting)
        self.took_all = count < most
        self.waiting -= count
        return [NewFile(FilePlan("a", 1, (B,), ""), now)] * count

    def take_notes(self) -> list[str]:
        return []

    def finish(self) -> None:
        self.is_over = True

    def lag(self) -> Lag:
        return Lag(files=self.waiting)

    def close(self) -> None:
        pass


def feed(source: Source, run: Path, *, idle: float | None) -> StreamFeed:
    plan = PlanState()
    made = StreamFeed(
        arrivals=source,  # type: ignore[arg-type]
        cutter=BatchCutter(plan, batch_size=B, group_size=1, close_seconds=60),
        log=PlanLog(run, plan),
        plan=plan,
        most_ahead=100,
        poll_seconds=0.001,
        idle_seconds=idle,
        note=print,
    )
    made.close()  # its thread: here its steps are taken one by one
    return made


@pytest.mark.parametrize("idle", [0.0, None])
def test_a_stream_ends_only_once_all_that_is_there_was_taken(
    tmp_path: Path, idle: float | None
) -> None:
    source = Source(waiting=65)
    made = feed(source, tmp_path, idle=idle)
    if idle is None:
        made.finish()
    made._last_arrival = -math.inf

    first = made._following(64)
    second = made._following(64)

    assert first is not None
    assert (len(first.batches), first.ends) == (64, False), "a file waits, and no row does"
    assert second is not None
    assert (len(second.batches), second.ends) == (1, True)


def test_a_stream_does_not_end_while_samples_wait_for_their_labels(tmp_path: Path) -> None:
    source = Source(waiting=3)
    source.waits = True
    made = feed(source, tmp_path, idle=None)
    made.finish()

    first = made._following(64)
    assert first is not None
    assert (len(first.batches), first.ends, source.is_over) == (3, False, True)
    assert made._following(64) is None
    source.waits = False
    last = made._following(64)

    assert last is not None
    assert last.ends


def test_a_window_is_over_only_once_it_is_known_that_nothing_of_it_waits(tmp_path: Path) -> None:
    source = Source(waiting=70)
    made = feed(source, tmp_path, idle=None)
    made._following(64)
    before = made._cutter.arrived_until
    time.sleep(0.01)

    made._following(64)
    made._following(64)

    assert made._cutter.arrived_until > before
