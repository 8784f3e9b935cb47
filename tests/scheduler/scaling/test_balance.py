"""Buckets that move so that servers are equally busy: the plan, and when it is made."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from ps.routing import Routing
from scheduler.scaling.balance import (
    LEFT_SKEW,
    MOST_BUCKETS,
    BalancePolicy,
    Rebalancing,
    described,
    evened_out,
    load_of_shards,
    skew_of,
)
from scheduler.scaling.decisions import ScalingOptions

OPTIONS = ScalingOptions(windows=2, hold_seconds=100, most_skew=1.25)


@st.composite
def loads_of(draw: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Buckets anywhere or in order, and loads from even to those of a few hot keys."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_shards = draw(st.integers(1, 9))
    in_order = Routing.even(num_shards).buckets
    buckets = draw(st.sampled_from([in_order, rng.permutation(in_order)]))
    heat = draw(st.sampled_from([0.0, 1.0, 1e3, 1e6]))
    loads = rng.poisson(20, NUM_BUCKETS) + heat / (1.0 + rng.permutation(NUM_BUCKETS)) ** 1.1
    return buckets, loads.astype(np.int64), num_shards


@given(loads_of())
def test_a_plan_evens_out_what_can_be_and_moves_nothing_that_need_not(
    drawn: tuple[np.ndarray, np.ndarray, int],
) -> None:
    buckets, loads, num_shards = drawn

    planned = evened_out(buckets, loads, num_shards)

    before, after = (load_of_shards(b, loads, num_shards) for b in (buckets, planned))
    mean = loads.sum() / num_shards
    least = max(mean, loads.max())
    assert after.max() <= max(before.max(), LEFT_SKEW * least), "nobody is worse off"
    counts = np.bincount(planned, minlength=num_shards)
    assert counts.max() <= MOST_BUCKETS * NUM_BUCKETS / num_shards + 1
    moved = np.flatnonzero(planned != buckets)
    if moved.size:
        assert before.max() > LEFT_SKEW * least
        assert loads[moved].min() > 0
    # What no plan could do with fewer: the hottest of who has too much, until it has not.
    giver = int(before.argmax())
    given = np.sort(loads[(buckets == giver) & (planned != giver)])
    hottest = np.sort(loads[buckets == giver])[::-1]
    needed = int(np.searchsorted(np.cumsum(hottest), given.sum())) + 1
    assert given.size == 0 or given.size >= needed
    again = evened_out(planned, loads, num_shards)
    assert skew_of(again, loads, num_shards) <= skew_of(planned, loads, num_shards) + 1e-9


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_zipf_keys_whose_hot_buckets_lie_on_one_server_are_evened_out(
    seed: int, num_shards: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**62, 200_000)
    loads = np.zeros(NUM_BUCKETS, np.int64)
    np.add.at(loads, buckets_of(keys), (1e6 / np.arange(1, keys.size + 1) ** 0.8).astype(np.int64))
    # The hottest buckets on the first server, as many on each.
    buckets = np.empty(NUM_BUCKETS, np.uint16)
    buckets[np.argsort(-loads, kind="stable")] = Routing.even(num_shards).buckets
    assert skew_of(buckets, loads, num_shards) > 1.25

    planned = evened_out(buckets, loads, num_shards)

    floor = max(1.0, num_shards * loads.max() / loads.sum())
    assert skew_of(planned, loads, num_shards) <= LEFT_SKEW * floor + 0.01
    assert np.count_nonzero(planned != buckets) < NUM_BUCKETS / 2


def skewed(num_shards: int = 2, hot: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Equal buckets, but for some of the first server that have ten times the load."""
    buckets = Routing.even(num_shards).buckets
    loads = np.full(NUM_BUCKETS, 100, np.int64)
    first = np.flatnonzero(buckets == 0)
    loads[np.random.default_rng(seed).choice(first, hot, replace=False)] = 10_000
    return buckets, loads


class Driven:
    """A policy whose plans are carried out at once; every window takes ten seconds."""

    def __init__(self, buckets: np.ndarray, num_shards: int = 2) -> None:
        self.policy = BalancePolicy(OPTIONS)
        self.buckets, self.num_shards, self.now = buckets, num_shards, 0.0
        self.found: list[Rebalancing] = []

    def look(self, loads: np.ndarray, windows: int = 1) -> list[Rebalancing]:
        found: list[Rebalancing] = []
        for _ in range(windows):
            self.now += 10
            news, planned = self.policy.look(self.now, self.buckets, loads, self.num_shards)
            found += news
            self.buckets = self.buckets if planned is None else planned
        self.found += found
        return found


def test_it_decides_after_some_windows_and_measures_what_came_of_it() -> None:
    buckets, loads = skewed()
    job = Driven(buckets)

    assert job.look(loads) == []
    (decision,) = job.look(loads)
    assert decision.skew == pytest.approx(skew_of(buckets, loads, 2))
    assert decision.predicted <= LEFT_SKEW
    assert decision.buckets <= 20
    assert job.look(loads) == []
    (outcome,) = job.look(loads)
    assert outcome.realised == pytest.approx(decision.predicted)
    assert job.look(loads, 200) == []
    assert described(outcome) == (
        f"the busiest server has {decision.skew:.2f} times the mean load: {decision.buckets}"
        f" buckets move, {decision.predicted:.2f} times is predicted,"
        f" {decision.predicted:.2f} times came of it"
    )


@settings(max_examples=25)  # of 300 windows each
@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(200, 100_000))
def test_load_that_stays_and_is_measured_with_noise_leads_to_one_decision(
    seed: int, num_shards: int, keys: int
) -> None:
    rng = np.random.default_rng(seed)
    buckets, expected = skewed(num_shards, seed=seed % 1000)
    job = Driven(buckets, num_shards)

    for _ in range(300):
        job.look(rng.multinomial(200 * keys, expected / expected.sum()))

    decisions = [each for each in job.found if each.realised is None]
    assert len(decisions) <= 1


def test_load_that_wanders_all_the_time_is_followed_ever_more_seldom() -> None:
    job = Driven(Routing.even(2).buckets)
    moves = []
    for round_ in range(400):
        # Whoever is given the hot buckets loses them to the other at once.
        hot = np.flatnonzero(job.buckets == round_ // 4 % 2)[:20]
        loads = np.full(NUM_BUCKETS, 100, np.int64)
        loads[hot] = 30_000
        moves += [job.now for each in job.look(loads) if each.realised is None]

    gaps = np.diff(moves)
    assert len(moves) < 12, "of 400 windows"
    assert gaps[-1] >= 4 * gaps[0]


def test_one_key_that_has_it_all_is_told_once_and_nothing_moves() -> None:
    buckets = Routing.even(4).buckets
    loads = np.full(NUM_BUCKETS, 10, np.int64)
    loads[5] = 10_000_000

    job = Driven(buckets, 4)
    (decision,) = job.look(loads, 100)

    assert decision.held_back == "one bucket has that load"
    assert decision.hottest == pytest.approx(4, rel=0.01)
    assert job.buckets is buckets
    assert described(decision).endswith("; held back: one bucket has that load")


def test_even_load_a_lone_server_and_no_load_lead_to_nothing() -> None:
    even = np.full(NUM_BUCKETS, 7, np.int64)
    buckets, loads = skewed(1)

    assert Driven(Routing.even(3).buckets, 3).look(even, 50) == []
    assert Driven(buckets, 1).look(loads, 50) == []
    assert Driven(skewed()[0]).look(np.zeros(NUM_BUCKETS, np.int64), 50) == []


def test_a_decision_that_something_else_came_before_is_forgotten() -> None:
    buckets, loads = skewed()
    policy = BalancePolicy(OPTIONS)
    decided = [policy.look(10.0 * n, buckets, loads, 2)[0] for n in range(2)]
    assert decided[1]

    other = Routing.even(3).buckets
    assert policy.look(30.0, other, loads, 3) == ([], None)
    found = [policy.look(10.0 * n, other, loads, 3) for n in range(4, 6)]

    assert found[1][0][0].number == 2
