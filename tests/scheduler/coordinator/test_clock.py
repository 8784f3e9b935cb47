"""The clock of schedules."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from scheduler.coordinator.clock import ClockState, ScheduleClock
from scheduler.coordinator.staleness import Histogram, Summary
from scheduler.coordinator.start import InitClock, Start, start_from, time_to_json


def test_the_clock_counts_global_batches_whatever_a_step_is() -> None:
    sync, small = ScheduleClock(100, remembered=10), ScheduleClock(100, remembered=10)
    for step in range(3):
        sync.advance(100, next_step=step + 1)
    for step in range(12):
        small.advance(25, next_step=step + 1)

    assert sync.value == small.value == 3


def test_the_first_step_of_a_clock_value_is_known() -> None:
    clock = ScheduleClock(100, remembered=10)
    for step in range(8):
        clock.advance(25, next_step=step + 1)

    assert [clock.first_step_at(c) for c in (-5, 0, 1, 2)] == [0, 0, 4, 8]


def test_a_step_that_spans_ticks_begins_all_of_them() -> None:
    clock = ScheduleClock(10, remembered=10)
    clock.advance(35, next_step=1)

    assert clock.value == 3
    assert [clock.first_step_at(c) for c in (1, 2, 3)] == [1, 1, 1]


def test_only_what_can_still_be_asked_is_kept() -> None:
    """Steps of any sizes, as async and gba have them, and steps of one size."""
    uneven, even = ScheduleClock(10, remembered=5), ScheduleClock(10, remembered=10**6)
    first_steps = [0]
    for step in range(5_000):
        uneven.advance((step * 7) % 13, next_step=step + 1)
        even.advance(10, next_step=step + 1)
        first_steps += [step + 1] * (uneven.value + 1 - len(first_steps))
        for back in range(6):
            at = uneven.value - back
            assert uneven.first_step_at(at) == (first_steps[at] if at >= 0 else 0)

    assert uneven.first_step_at(uneven.value - 6) == 0, "it is forgotten"
    assert sum(count for _, _, _, count in uneven.state().first_steps) == 6
    assert len(uneven.state().first_steps) <= 6
    assert even.first_step_at(1_234) == 1_234
    assert len(even.state().first_steps) == 1


def test_a_clock_that_goes_on_is_the_clock_that_never_stopped() -> None:
    sizes = [(step * 7) % 13 for step in range(60)]
    for stop in range(60):
        whole, before = ScheduleClock(10, remembered=4), ScheduleClock(10, remembered=4)
        for step, size in enumerate(sizes):
            whole.advance(size, next_step=step + 1)
            if step < stop:
                before.advance(size, next_step=step + 1)
        after = ScheduleClock(10, remembered=4, start=before.state())
        for step in range(stop, 60):
            after.advance(sizes[step], next_step=step + 1)
        assert after.state() == whole.state()


def saved(time: dict[str, Any], *, step: int = 30) -> CheckpointReader:
    manifest = SimpleNamespace(step=step, time=json.loads(json.dumps(time)))
    return cast(CheckpointReader, SimpleNamespace(manifest=manifest, directory="full-30"))


CLOCK = ClockState(value=7, samples=6, first_steps=((5, 20, 4, 2), (7, 30, 0, 1)))
TIME = time_to_json(Start(step=12, optimizer_steps=112), CLOCK, step=30, global_batch=8)


@pytest.mark.parametrize(
    ("global_batch", "init_clock", "expected"),
    [
        (8, "continue", Start(step=30, clock=CLOCK, optimizer_steps=130, goes_on=True)),
        (
            20,
            "continue",
            Start(step=30, clock=replace(CLOCK, samples=15), optimizer_steps=130, goes_on=True),
        ),
        (8, "anew", Start(optimizer_steps=130)),
    ],
)
def test_a_job_begins_where_the_checkpoint_ended_or_anew(
    global_batch: int, init_clock: InitClock, expected: Start
) -> None:
    """With another G the clock's value stays, and the part of a tick that has passed."""
    start = start_from(saved(TIME), global_batch=global_batch, init_clock=init_clock)

    assert start == expected


@pytest.mark.parametrize(
    "change",
    [
        {"clock": -1},
        {"clock": 8},
        {"samples_since_tick": 8},
        {"global_batch": 0},
        {"optimizer_steps": "1"},
        {"first_steps": [[5, 20, 4, 2]]},
        {"first_steps": [[5, 20, 4, 2], [7, 31, 0, 1]]},
        {"first_steps": [[5, 20, -4, 2], [7, 30, 0, 1]]},
        {"first_steps": [[5, 20, 4]]},
        {"first_steps": []},
        {"more": 1},
    ],
)
def test_a_damaged_time_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="full-30 does not say the time"):
        start_from(saved(TIME | change), global_batch=8, init_clock="continue")


def test_histograms_give_exact_percentiles() -> None:
    histogram = Histogram()
    for value in [0] * 98 + [5, 9]:
        histogram.add(value)

    assert histogram.summary() == Summary(mean=0.14, p50=0, p99=5, max=9)
    assert Histogram().summary() == Summary()
