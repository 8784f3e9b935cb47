"""The coordinator and simulated fleets: what a report takes, and what makes a step."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from scheduler.coordinator.events import Event
from scheduler.coordinator.modes.rules import Mode
from simulation.fleet import Fleet, FleetSpec


def fleet(mode: Mode, workers: int, **changes: Any) -> Fleet:
    """A fleet whose time does not depend on what else this machine does."""
    options = {"group_size": workers, "handle_seconds": 1e-4, **changes}
    return Fleet(FleetSpec(mode=mode, workers=workers, **options))


def lines_per_report(mode: Mode, workers: int, **changes: Any) -> float:
    """Lines of code that the coordinator executes, each turn of a loop counted."""
    simulated = fleet(mode, workers, **changes)
    simulated.train(workers)
    lines = 0

    def count(frame: FrameType, what: str, argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += what == "line"
        return count

    handle = simulated.coordinator.handle

    def watched(event: Event, now: float) -> Any:
        before = sys.gettrace()
        sys.settrace(count)
        try:
            return handle(event, now)
        finally:
            sys.settrace(before)

    simulated.coordinator.handle = watched  # type: ignore[method-assign]
    simulated.train(3 * workers)
    return lines / len(simulated.costs.reports)


@pytest.mark.parametrize("mode", ["sync", "gba", "async", "ssp", "backup"])
def test_a_report_takes_no_more_work_where_there_are_more_workers(mode: Mode) -> None:
    few, many = (lines_per_report(mode, workers, shards=1) for workers in (16, 128))

    assert many < 1.15 * few


@pytest.mark.parametrize("mode", ["gba", "async"])
def test_nobody_waits_where_the_coordinator_has_time_to_spare(mode: Mode) -> None:
    simulated = fleet(mode, 16)
    simulated.train(200)
    began = simulated.now
    simulated.train(1000)

    rate = simulated.costs.batches / (simulated.now - began)
    assert rate == pytest.approx(simulated.batches_at_full_rate, rel=0.05)


def test_calls_that_take_too_long_for_all_workers_limit_the_rate() -> None:
    simulated = fleet("gba", 16, call_seconds=0.01)
    simulated.train(100)
    began = simulated.now
    simulated.train(500)

    seconds = simulated.now - began
    assert 90 < len(simulated.costs.reports) / seconds < 102
    assert simulated.costs.batches / seconds < 0.5 * simulated.batches_at_full_rate


def test_reports_that_carry_several_batches_take_fewer_calls() -> None:
    often, seldom = (
        fleet("gba", 16, report_seconds=seconds, depth=depth)
        for seconds, depth in [(0.0, 2), (0.25, 12)]
    )
    for simulated in (often, seldom):
        simulated.train(200)
        simulated.train(800)

    assert len(often.costs.reports) > 3 * len(seldom.costs.reports)
