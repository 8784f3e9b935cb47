"""When `auto` shifts: a small job on a virtual clock, whose workers are as slow as a trace says."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.coordinator.modes.policy import PolicyOptions, ShiftingMode, SwitchPolicy, Verdict

DEPTH = 2
QUICK = PolicyOptions(min_dwell_seconds=10)
Trace = Callable[[int, float], float]


@dataclass(slots=True)
class Job:
    """Workers that hold tokens ahead, a barrier in sync and none in gba, and the policy.

    Args:
        seconds: of a batch that a worker begins at some time, but for the jitter.
        follow: whether the policy's shifts are carried out.
        share: most tokens of one step that a worker holds.
        unseen: seconds that each batch of a mode takes besides, which its times don't show.
    """

    workers: int
    m: int
    seconds: Trace
    options: PolicyOptions = QUICK
    jitter: float = 0.1
    seed: int = 0
    follow: bool = True
    mode: ShiftingMode = "sync"
    share: int = 1
    unseen: dict[ShiftingMode, float] = field(default_factory=dict)
    now: float = 0.0
    next_look: float = 0.25
    samples: int = 0
    shifts: list[tuple[float, ShiftingMode]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    step: int = 0
    leased: int = 0
    ended: int = 0
    held: dict[int, deque[int]] = field(default_factory=dict)
    took: dict[int, float] = field(default_factory=dict)
    computing: dict[int, tuple[float, int]] = field(default_factory=dict)
    queue: list[tuple[float, int]] = field(default_factory=list)
    rng: random.Random = field(init=False)
    policy: SwitchPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.policy = SwitchPolicy(
            self.options, group_size=self.m, global_batch=self.m * 10, depth=DEPTH,
        )  # fmt: skip
        for worker in range(self.workers):
            self.join(worker)

    def join(self, worker: int) -> None:
        self.held[worker] = deque()
        self.policy.working(worker, now=self.now)
        self.begin()

    def leave(self, worker: int) -> None:
        """What it held is given to others."""
        computing = self.computing.pop(worker, None)
        lost = [*self.held.pop(worker), *(() if computing is None else [computing[1]])]
        self.policy.gone(worker)
        for step in lost:
            heir = min(self.held, key=lambda other: len(self.held[other]))
            self.held[heir] = deque(sorted([*self.held[heir], step]))
        self.begin()

    def train(self, until: float) -> "Job":
        while min(self.next_look, self.queue[0][0]) < until:
            if self.next_look < self.queue[0][0]:
                self.now = self.next_look
                self.next_look += 0.25
                self.look()
                continue
            end, worker = heapq.heappop(self.queue)
            if self.computing.get(worker, (0.0, 0))[0] == end:
                self.now = end
                self.end(worker)
                self.begin()
        self.now = until
        return self

    def look(self) -> None:
        verdict = self.policy.look(
            self.now, mode=self.mode, samples_applied=self.samples, apply_rate=None,
            busy=set(self.computing),
        )  # fmt: skip
        if verdict is not None:
            self.verdicts.append(verdict)
            if verdict.shift_to is not None and self.follow:
                self.shift(verdict.shift_to)

    def shift(self, mode: ShiftingMode) -> None:
        """Tokens are numbered anew; what is being computed counts."""
        self.mode = mode
        self.shifts.append((self.now, mode))
        self.step = self.leased = self.ended = 0
        for held in self.held.values():
            held.clear()
        self.computing = {worker: (end, -1) for worker, (end, _) in self.computing.items()}
        self.policy.shifted(self.now)
        self.begin()

    def end(self, worker: int) -> None:
        _, step = self.computing.pop(worker)
        self.samples += 10
        self.policy.finished(worker, samples=10, seconds=self.took[worker], now=self.now)
        self.ended += step >= 0
        if step >= 0 and self.ended % self.m == 0:
            self.step += 1
            self.policy.step_applied(self.now)

    def begin(self) -> None:
        """Let everyone lease and begin what can be begun."""
        before = -1
        while self.leased > before:
            before = self.leased
            for worker, held in self.held.items():
                self.lease(worker)
                if not held or worker in self.computing:
                    continue
                if self.mode == "sync" and held[0] > self.step:
                    continue
                factor = self.rng.uniform(1 - self.jitter, 1 + self.jitter)
                self.took[worker] = self.seconds(worker, self.now) * factor
                end = self.now + self.took[worker] + self.unseen.get(self.mode, 0.0)
                self.computing[worker] = end, held.popleft()
                heapq.heappush(self.queue, (end, worker))
                self.lease(worker)

    def lease(self, worker: int) -> None:
        held = self.held[worker]
        while len(held) < DEPTH:
            step = self.leased // self.m
            same = held.count(step) + (self.computing.get(worker, (0.0, -1))[1] == step)
            if self.mode == "sync" and same >= self.share:
                return
            held.append(step)
            self.leased += 1


def straggler(factor: float, *, begin: float = 0.0, end: float = float("inf")) -> Trace:
    """Even workers of half a second, the first of them slower for a while."""

    def seconds(worker: int, now: float) -> float:
        return 0.5 * (factor if worker == 0 and begin <= now < end else 1.0)

    return seconds


def even(worker: int, now: float) -> float:
    return 0.5


LATEST = QUICK.windows * QUICK.window_seconds + QUICK.window_seconds


@pytest.mark.parametrize("workers", [2, 4, 32])
@pytest.mark.parametrize("batches_per_worker", [1, 4])
@pytest.mark.parametrize("scale", [0.2, 1.0, 10.0])
def test_even_workers_stay_in_sync_where_its_barrier_costs_little(
    workers: int, batches_per_worker: int, scale: float
) -> None:
    job = Job(workers, workers * batches_per_worker, lambda w, t: 0.5 * scale, jitter=0.1)

    job.train(60)

    assert job.shifts == []
    assert len(job.verdicts) >= 8


@pytest.mark.parametrize("batches_per_worker", [1, 4])
def test_a_barrier_that_costs_a_third_is_left_for_good_though_all_workers_are_even(
    batches_per_worker: int,
) -> None:
    job = Job(32, 32 * batches_per_worker, even, jitter=0.1, unseen={"sync": 0.2})

    job.train(200)

    assert [mode for _, mode in job.shifts] == ["gba"]
    assert job.shifts[0][0] <= QUICK.min_dwell_seconds + LATEST
    assert job.verdicts[-1].prediction.ratio == pytest.approx(1.45, abs=0.1)


def test_a_mode_that_was_promising_and_is_no_better_is_left_once_and_not_tried_again() -> None:
    """Both modes train less than batch times allow, of which one knows only by trying."""
    job = Job(8, 8, even, jitter=0.0, unseen={"sync": 0.2, "gba": 0.2})

    job.train(300)

    assert [mode for _, mode in job.shifts] == ["gba", "sync"]


@pytest.mark.parametrize("workers", [4, 8])
@pytest.mark.parametrize("factor", [4, 8, 40])
def test_a_straggler_is_left_to_itself_for_good(workers: int, factor: float) -> None:
    job = Job(workers, workers, straggler(factor, begin=40)).train(200)

    assert [mode for _, mode in job.shifts] == ["gba"]
    assert 40 < job.shifts[0][0] <= 40 + LATEST


def test_many_batches_a_step_hide_a_straggler() -> None:
    job = Job(4, 64, straggler(4)).train(150)

    assert job.shifts == []


@pytest.mark.parametrize(("m", "factor"), [(8, 4), (8, 8), (32, 8)])
def test_a_straggler_that_comes_and_goes_costs_two_shifts(m: int, factor: float) -> None:
    job = Job(8, m, straggler(factor, begin=60, end=120)).train(240)

    assert [mode for _, mode in job.shifts] == ["gba", "sync"]
    assert 60 < job.shifts[0][0] <= 60 + LATEST
    assert 120 < job.shifts[1][0] <= 120 + LATEST + 0.5 * factor


def test_a_straggler_of_a_few_seconds_is_no_reason() -> None:
    def seconds(worker: int, now: float) -> float:
        return 2.0 if worker == 0 and now % 40 < 2 else 0.5

    assert Job(8, 8, seconds).train(300).shifts == []


def test_a_fleet_that_is_slow_altogether_stays_in_sync() -> None:
    def seconds(worker: int, now: float) -> float:
        return 5.0 if 60 <= now < 150 else 0.5

    assert Job(8, 8, seconds).train(240).shifts == []


def test_a_fleet_that_drifts_stays_in_sync() -> None:
    def seconds(worker: int, now: float) -> float:
        return 0.3 + now / 100

    assert Job(8, 8, seconds).train(300).shifts == []


def test_one_that_drifts_away_from_the_others_is_noticed_once() -> None:
    def seconds(worker: int, now: float) -> float:
        return 0.5 + (now / 100 if worker == 0 else 0)

    assert [mode for _, mode in Job(8, 8, seconds).train(300).shifts] == ["gba"]


def test_between_the_two_ratios_nothing_is_done() -> None:
    def seconds(worker: int, now: float) -> float:
        return 0.115 if worker == 0 else 0.1

    assert Job(8, 8, seconds).train(60).shifts == []
    assert Job(8, 8, seconds, mode="gba").train(60).shifts == []


@pytest.mark.parametrize("mode", ["sync", "gba"])
def test_no_shift_before_the_dwell_is_over(mode: ShiftingMode) -> None:
    trace = straggler(8) if mode == "sync" else even
    options = PolicyOptions(min_dwell_seconds=60)

    job = Job(4, 4, trace, options=options, mode=mode).train(100)

    assert len(job.shifts) == 1
    assert 60 <= job.shifts[0][0] <= 60 + 2 * options.window_seconds


def test_a_straggler_that_leaves_is_forgotten_and_the_next_one_is_not() -> None:
    job = Job(8, 8, straggler(8)).train(60)
    assert job.mode == "gba"

    job.leave(0)
    job.train(120)
    assert job.mode == "sync" or job.verdicts[-1].prediction.ratio > 1.05

    job.join(0)
    job.train(180)
    assert job.mode == "gba"
    assert len(job.shifts) <= 3


def test_a_stuck_worker_is_seen_before_its_batch_ends() -> None:
    job = Job(4, 4, straggler(10_000, begin=30)).train(80)

    assert [mode for _, mode in job.shifts] == ["gba"]


def test_waiting_at_the_barrier_is_not_taken_for_work() -> None:
    job = Job(4, 4, straggler(30), follow=False).train(120)

    assert all(verdict.prediction.ratio > 5 for verdict in job.verdicts[-5:])


def test_slow_first_batches_shift_nothing() -> None:
    seen: set[int] = set()

    def seconds(worker: int, now: float) -> float:
        first = worker not in seen
        seen.add(worker)
        return 3.0 + 2 * worker if first else 0.5

    options = PolicyOptions(min_dwell_seconds=0)
    assert Job(8, 8, seconds, options=options).train(120).shifts == []


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    factors=st.lists(st.sampled_from([1, 1, 1.3, 2, 4, 8]), min_size=4, max_size=4),
    period=st.sampled_from([3, 7, 20, 45]),
    per_worker=st.sampled_from([1, 4]),
)
def test_shifts_are_never_closer_than_the_dwell(
    seed: int, factors: list[float], period: float, per_worker: int
) -> None:
    def seconds(worker: int, now: float) -> float:
        return 0.5 * factors[(worker + int(now / period)) % 4]

    job = Job(4, 4 * per_worker, seconds, seed=seed, jitter=0.3).train(120)

    times = [0.0, *(time for time, _ in job.shifts)]
    gaps = [after - before for before, after in pairwise(times)]
    assert all(gap >= max(10, 3 * QUICK.window_seconds) - 1e-6 for gap in gaps)


def test_the_servers_rate_caps_what_gba_promises() -> None:
    policy = SwitchPolicy(QUICK, group_size=4, global_batch=40, depth=1)
    for now in range(10):
        for worker in range(4):
            policy.finished(worker, samples=10, seconds=1.0 + 7 * (worker == 0), now=now / 2)

    verdict = policy.look(6, mode="sync", samples_applied=120, apply_rate=12)

    assert verdict is not None
    assert verdict.prediction.gba_rate == 12
    assert verdict.prediction.realised_rate == 20
    assert verdict.prediction.sync_rate == pytest.approx(40 / 8, rel=0.1)


def test_nothing_is_said_between_windows_or_before_anything_ended() -> None:
    policy = SwitchPolicy(QUICK, group_size=2, global_batch=2, depth=1)
    policy.working(0, now=0)
    assert policy.look(100, mode="sync", samples_applied=0, apply_rate=None) is None

    policy.finished(0, samples=1, seconds=1, now=100)
    policy.finished(0, samples=1, seconds=1, now=101)
    assert policy.look(104, mode="sync", samples_applied=2, apply_rate=None) is None
    assert policy.look(105, mode="sync", samples_applied=2, apply_rate=None) is not None


def test_who_waited_begins_when_the_step_is_applied() -> None:
    policy = SwitchPolicy(QUICK, group_size=2, global_batch=2, depth=1)
    for now in (0, 0.5, 1):
        policy.finished(0, samples=1, seconds=1, now=now)
    policy.working(1, now=1.5)
    policy.look(5, mode="sync", samples_applied=3, apply_rate=None, busy={1})
    policy.finished(1, samples=1, seconds=8, now=9.5)
    policy.step_applied(9.5)

    verdict = policy.look(10, mode="sync", samples_applied=4, apply_rate=None, busy={0, 1})

    assert verdict is not None
    assert verdict.prediction.ratio == pytest.approx(4.5, rel=0.05)


def test_a_pause_is_nobodys_fault() -> None:
    policy = SwitchPolicy(QUICK, group_size=2, global_batch=2, depth=1)
    for now in range(4):
        policy.finished(0, samples=1, seconds=1, now=now)
        policy.finished(1, samples=1, seconds=1, now=now)
    policy.look(5, mode="gba", samples_applied=8, apply_rate=None)
    policy.finished(0, samples=1, seconds=1, now=100)
    policy.resumed(100)

    verdict = policy.look(105, mode="gba", samples_applied=9, apply_rate=None)

    assert verdict is not None
    assert verdict.prediction.gba_rate < 2
    assert verdict.prediction.ratio < 1.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_seconds": 0}, {"windows": 0}, {"to_sync_ratio": 1.0}, {"to_sync_ratio": 1.2},
        {"to_gba_ratio": 1.05}, {"to_gba_ratio": float("nan")}, {"min_dwell_seconds": -1},
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        PolicyOptions(**wrong)  # type: ignore[arg-type]

    assert next(iter(wrong)) in str(refused.value) or "to_sync_ratio" in str(refused.value)
