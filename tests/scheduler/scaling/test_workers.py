"""How many workers a job should have: one decision at a time."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.scaling.decisions import Scaling, ScalingOptions, Window, described
from scheduler.scaling.workers import WorkerPolicy

OPTIONS = ScalingOptions(window_seconds=10, windows=3, hold_seconds=100, place_seconds=60)


class Job:
    """A job whose rate is a function of its workers; what is decided is carried out at once."""

    def __init__(self, rate: Callable[[int], float], *, workers: int = 2, **bounds: Any) -> None:
        self.policy = WorkerPolicy(OPTIONS, **{"least": 1, "most": 64, **bounds})
        self.rate = rate
        self.workers = workers
        self.now = 0.0
        self.decisions: list[Scaling] = []
        self.realised: dict[int, float] = {}

    def windows(self, count: int, **figures: Any) -> list[int]:
        """Let so many windows pass; return the numbers of workers that were wanted meanwhile."""
        wanted = [self.workers]
        for _ in range(count):
            self.now += 10
            window = {"up": self.workers, "rate": self.rate(self.workers), **figures}
            for found in self.policy.look(
                self.now, Window(seconds=10, wanted=self.workers, **window)
            ):
                if found.realised is not None:
                    self.realised[found.number] = found.realised
                    continue
                self.decisions.append(found)
                self.workers = found.after
                wanted.append(found.after)
        return wanted


def test_workers_are_added_as_long_as_they_pay() -> None:
    job = Job(lambda n: 100.0 * n, most=13)

    assert job.windows(40) == [2, 4, 8, 13]
    assert job.policy.why == "13 workers are the most that it may have"


def test_what_does_not_pay_goes_and_is_not_tried_again_for_a_while() -> None:
    job = Job(lambda n: 100.0 * min(n, 5))

    wanted = job.windows(16)
    assert wanted == [2, 4, 8, 5]
    assert "4 more do not pay" in job.decisions[-1].reason

    while job.workers == 5:
        job.windows(1)

    assert job.now >= 120 + OPTIONS.hold_seconds
    assert job.workers == 6, "one more, not twice as many"


def test_every_decision_tells_what_was_predicted_and_what_came_of_it() -> None:
    job = Job(lambda n: 100.0 * min(n, 5))

    job.windows(30)

    told = [(d.before, d.after, d.predicted, job.realised.get(d.number)) for d in job.decisions]
    assert told[:3] == [(2, 4, 400.0, 400.0), (4, 8, 800.0, 500.0), (8, 5, 500.0, 500.0)]
    assert [d.number for d in job.decisions] == list(range(1, len(job.decisions) + 1))
    assert described(job.decisions[0]).startswith("workers 2 to 4: 2 train 100 samples/s each")


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"server_load": 0.95}, "the servers bind: the busiest applies 95% of the time"),
        ({"coordinator_load": 0.97}, "the coordinator binds: it works 97% of the time"),
        ({"starved": 0.3}, "workers have too little to do: they wait for batches 30%"),
        ({"useful_workers": 2}, "a step has 2 batches: more workers would have none"),
        ({"samples_left": 5000}, "the job ends before more workers would have paid"),
    ],
)
def test_no_worker_is_tried_where_something_else_binds(figures: dict[str, Any], why: str) -> None:
    job = Job(lambda n: 100.0 * n)

    assert job.windows(20, **figures) == [2]
    assert why in job.policy.why


def test_servers_that_are_half_busy_bound_the_step_that_is_tried() -> None:
    job = Job(lambda n: 100.0 * n, workers=8)

    job.windows(4, server_load=0.8)

    (decision,) = job.decisions
    assert (decision.after, decision.predicted) == (10, 1000.0)
    assert decision.figures["server_load"] == 0.8


def test_workers_that_wait_go_unless_they_are_missed() -> None:
    job = Job(lambda n: 100.0 * min(n, 4), workers=16)
    wait_for_latency = Job(lambda n: 100.0 * n, workers=16, most=16)

    assert job.windows(8, busy=0.3) == [16, 8, 4]
    assert wait_for_latency.windows(8, busy=0.3)[:3] == [16, 8, 16]
    assert "are missed" in wait_for_latency.decisions[1].reason


def test_workers_without_a_place_are_given_up() -> None:
    job = Job(lambda n: 100.0 * n)
    job.windows(4)
    assert job.workers == 4

    assert job.windows(5, up=3, rate=300.0) == [4]
    assert job.policy.why == "1 of 4 workers are not at work yet"
    assert job.windows(1, up=3, rate=300.0) == [4, 3]
    assert job.decisions[-1].cause == "no place"
    assert job.windows(6) == [3], "not at once again"


def test_who_is_lost_and_comes_again_is_no_reason_for_anything() -> None:
    job = Job(lambda n: 100.0 * min(n, 3), workers=3, most=3)
    job.windows(5)

    assert job.windows(3, up=2, rate=150.0) == [3]
    assert job.windows(10) == [3]


def test_what_chance_may_have_done_is_measured_longer() -> None:
    rates = iter([0.0, 400.0, 200.0] * 100)
    job = Job(lambda n: next(rates), workers=2)

    assert job.windows(12) == [2]
    assert job.windows(1) == [2, 4], "four times as many windows are enough for anything"


def test_another_rate_of_the_job_makes_what_was_learned_worthless() -> None:
    bound = [5]
    job = Job(lambda n: 100.0 * min(n, bound[0]), workers=5)
    assert job.windows(12)[:3] == [5, 10, 5]

    bound[0] = 50
    job.rate = lambda n: 150.0 * min(n, bound[0])

    assert len(job.windows(5)) > 1


def test_a_number_that_somebody_else_wants_is_measured_anew() -> None:
    job = Job(lambda n: 100.0 * n)
    job.windows(4)
    assert job.workers == 4

    job.workers = 7

    assert job.windows(4) == [7, 14]
    assert job.realised == {}, "nobody knows what the four would have done"


def test_after_another_mode_everything_is_measured_anew() -> None:
    job = Job(lambda n: 100.0 * min(n, 5))
    job.windows(20)
    assert job.workers == 5

    job.policy.restarted()

    assert job.windows(4) == [5, 10]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep_gain": 1.0}, "keep_gain must be above 0 and below 1"),
        ({"windows": 1}, "windows must be 2 to 100"),
        ({"server_load": 0.0}, "server_load must be between 0 and 1"),
        ({"window_seconds": 0.0}, "window_seconds"),
        ({"server_memory_bytes": 5}, "server_memory_bytes is below 1 MiB"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ScalingOptions(**options)
