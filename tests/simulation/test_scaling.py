"""The policy of workers against one that knows everything, on a virtual clock."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import scheduler.scaling.workers
from scheduler.scaling.decisions import ScalingOptions
from simulation.scaling import TRACES, by_number, by_oracle, by_policy, regret

OPTIONS = ScalingOptions()
BY_NAME = {trace.name: trace for trace in TRACES}

# What docs/running-on-a-cluster.md says of each, with room for another random generator.
MOST_REGRET = {
    "steady": 0.04,
    "server-bound": 0.07,
    "data-bound": 0.13,
    "diurnal stream": 0.18,
    "spike in a stream": 0.19,
    "stragglers": 0.18,
    "noisy": 0.18,
    "slower servers after an hour": 0.12,
    "too many at first": 0.13,
    "a small cluster": 0.04,
}


def test_every_trace_has_a_limit() -> None:
    assert list(MOST_REGRET) == list(BY_NAME)


@pytest.mark.parametrize("name", MOST_REGRET)
def test_the_policy_comes_near_to_the_oracle(name: str) -> None:
    assert regret(BY_NAME[name], OPTIONS, seed=1) <= MOST_REGRET[name]


@pytest.mark.parametrize("name", ["server-bound", "stragglers"])
def test_no_number_that_stays_is_worth_more_than_the_oracle(name: str) -> None:
    trace = replace(BY_NAME[name], seconds=600.0)
    best = by_oracle(trace, OPTIONS).value

    assert all(by_number(trace, OPTIONS, n).value <= 1.001 * best for n in range(1, 65))


def test_one_seed_gives_one_outcome() -> None:
    trace = replace(BY_NAME["noisy"], seconds=1200.0)

    assert by_policy(trace, OPTIONS, seed=5) == by_policy(trace, OPTIONS, seed=5)
    assert by_policy(trace, OPTIONS, seed=5) != by_policy(trace, OPTIONS, seed=6)


def _never_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.scaling.workers.WorkerPolicy, "_fewer", lambda *_: [])


def _never_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.scaling.workers.WorkerPolicy, "_more", lambda *_: [])


def _forgets_what_did_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.scaling.workers.WorkerPolicy, "_counts", lambda *_: None)


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (_never_fewer, "too many at first"),
        (_never_more, "steady"),
        (_forgets_what_did_not_pay, "data-bound"),
    ],
)
def test_a_policy_that_lacks_a_part_is_found(
    monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None], name: str
) -> None:
    mutant(monkeypatch)

    assert regret(BY_NAME[name], OPTIONS, seed=1) > MOST_REGRET[name]
