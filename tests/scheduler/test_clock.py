"""The clock of schedules."""

from scheduler.clock import ScheduleClock
from scheduler.staleness import Histogram


def test_the_clock_counts_global_batches_whatever_a_step_is() -> None:
    sync, small = ScheduleClock(100), ScheduleClock(100)
    for step in range(3):
        sync.advance(100, next_step=step + 1)
    for step in range(12):
        small.advance(25, next_step=step + 1)

    assert sync.value == small.value == 3


def test_the_first_step_of_a_clock_value_is_known() -> None:
    clock = ScheduleClock(100)
    for step in range(8):
        clock.advance(25, next_step=step + 1)

    assert [clock.first_step_at(c) for c in (-5, 0, 1, 2)] == [0, 0, 4, 8]


def test_a_step_that_spans_ticks_begins_all_of_them() -> None:
    clock = ScheduleClock(10)
    clock.advance(35, next_step=1)

    assert clock.value == 3
    assert [clock.first_step_at(c) for c in (1, 2, 3)] == [1, 1, 1]


def test_histograms_give_exact_percentiles() -> None:
    histogram = Histogram()
    for value in [0] * 98 + [5, 9]:
        histogram.add(value)

    assert histogram.summary() == {"mean": 0.14, "p50": 0, "p99": 5, "max": 9}
    assert Histogram().summary()["max"] == 0
