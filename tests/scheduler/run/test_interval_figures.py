"""Figures of an interval are differences of sums, also where a worker begins anew."""

from ps.server.figures import TableFigures
from scheduler.coordinator.state import WorkerFigures
from scheduler.run.interval_figures import (
    MOST_PROCESSES,
    HistogramOfInterval,
    NewKeysOfInterval,
    WorkerOfInterval,
    WorkersOfInterval,
    all_together,
    slowest,
)


def state(batches: int, samples: int, seconds: float, incarnation: int = 0) -> WorkerFigures:
    return WorkerFigures(incarnation=incarnation, batches=batches, samples=samples, seconds=seconds)


def test_a_histogram_of_an_interval_counts_only_what_came_in_it() -> None:
    histogram = HistogramOfInterval()

    assert histogram.since_last({0: 5, 2: 1}) == {"0": 5, "2": 1}
    assert histogram.since_last({0: 5, 2: 4, 10: 1}) == {"2": 3, "10": 1}


def test_a_worker_s_batch_time_and_share_are_of_the_interval() -> None:
    workers = WorkersOfInterval()
    workers.since_last({0: state(10, 100, 1.0), 1: state(10, 100, 4.0)})

    figures = workers.since_last({0: state(40, 400, 4.0), 1: state(20, 200, 8.0)})

    assert figures[0] == WorkerOfInterval(
        batches=30, samples=300, batch_seconds=0.1, share=0.75, lost=False
    )
    assert (figures[1].batch_seconds, figures[1].share) == (0.4, 0.25)


def test_a_replaced_worker_s_sums_begin_at_zero() -> None:
    workers = WorkersOfInterval()
    workers.since_last({0: state(10, 100, 1.0)})

    figures = workers.since_last({0: state(4, 40, 2.0, incarnation=1)})

    assert (figures[0].batches, figures[0].batch_seconds) == (4, 0.5)


def test_sums_that_begin_anew_give_no_negative_figures() -> None:
    workers, histogram = WorkersOfInterval(), HistogramOfInterval()
    workers.since_last({0: state(10, 100, 1.0)})
    histogram.since_last({0: 5, 2: 4})

    figures = workers.since_last({0: state(4, 40, 2.0)})

    assert (figures[0].batches, figures[0].samples, figures[0].share) == (4, 40, 1.0)
    assert histogram.since_last({0: 6, 2: 1}) == {"0": 1}
    assert histogram.since_last({0: 6, 2: 3}) == {"2": 2}


def test_a_worker_without_batches_has_no_batch_time() -> None:
    figures = WorkersOfInterval().since_last({0: state(0, 0, 0.0)})

    assert figures[0].batch_seconds is None
    assert figures[0].share == 0.0


def test_processes_that_are_gone_are_forgotten() -> None:
    workers = WorkersOfInterval()
    for incarnation in range(1000):
        workers.since_last({0: state(4, 40, 2.0, incarnation)})

    assert len(workers._before) == 1


def test_of_many_workers_the_slowest_are_listed_and_all_are_summed_up() -> None:
    states = {n: state(2, 10, 2.0 * (n + 1)) for n in range(100)}
    states[100] = WorkerFigures(lost=True)
    figures = WorkersOfInterval().since_last(states)

    listed = slowest(figures)

    assert list(listed) == list(range(100 - MOST_PROCESSES, 100))
    assert listed[99] == figures[99]
    assert all_together(figures) == {
        "count": 101, "lost": 1, "batches": 200, "samples": 1000,
        "batch_seconds": {"mean": 50.5, "p50": 51.0, "p99": 100.0, "max": 100.0},
    }  # fmt: skip


def test_a_few_workers_are_all_listed_and_without_batches_there_are_no_times() -> None:
    figures = WorkersOfInterval().since_last({n: state(0, 0, 0.0) for n in range(3)})

    assert slowest(figures) == figures
    assert set(all_together(figures)["batch_seconds"].values()) == {None}


def test_new_keys_are_told_by_sample_and_not_where_servers_know_less_than_before() -> None:
    new = NewKeysOfInterval()

    def told(samples: int, **figures: int) -> float | None:
        return new.since_last(samples, {"a": TableFigures(**figures)})["a"]

    assert told(100, rows=40, unadmitted=20) is None, "nothing is known of before"
    assert told(200, rows=50, unadmitted=20) == 0.1
    assert told(200, rows=50, unadmitted=20) is None, "no sample"
    assert told(300, rows=60, unadmitted=10) == 0.0, "keys that were admitted are not new"
    assert told(400, rows=30, unadmitted=10, evicted=50) == 0.2, "nor does eviction hide them"
    assert told(350, rows=20) is None, "it went back"
    assert told(450, rows=10) is None, "counters have expired"
    assert told(550, rows=35) == 0.25
