"""The policy of workers on a virtual clock: made-up jobs, and who would have known all of them.

A job is what its rate depends on: workers of some speed, what servers and storage let through, and
what arrives. Nothing of it is shown to the policy but windows, as a running job would measure them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import cos, floor, pi

from scheduler.scaling.decisions import Scaling, ScalingOptions, Window
from scheduler.scaling.workers import WorkerPolicy

INFINITE = float("inf")
# How sharp the bend is where a bound is met; a queue that is nearly full slows down before it.
_BEND = 8
# Of a worker that waits for nothing: the rest is pulling and pushing.
_COMPUTES = 0.85
_TICK_SECONDS = 2.0


def _always(value: float) -> Callable[[float], float]:
    return lambda seconds: value


_THOUSAND, _NO_BOUND = _always(1000.0), _always(INFINITE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One job; every function is of the seconds since its start, rates are samples per second.

    Args:
        seconds: how long it is looked at.
        first, least, most: workers that it begins with, and bounds.
        speed: of a worker that waits for nothing.
        servers, storage: what these let through.
        arrives: what there is to train; None: as much as anyone wants.
        slow_share, slow_speed: part of the workers that are so much slower than the others.
        boot_seconds: until a worker that is asked for works.
        places: workers that the cluster has place for.
        noise: standard deviation of a window's rate, as a part of it.
    """

    name: str
    seconds: float = 7200.0
    first: int = 2
    least: int = 1
    most: int = 64
    speed: Callable[[float], float] = _THOUSAND
    servers: Callable[[float], float] = _NO_BOUND
    storage: Callable[[float], float] = _NO_BOUND
    arrives: Callable[[float], float] | None = None
    slow_share: float = 0.0
    slow_speed: float = 1.0
    boot_seconds: float = 30.0
    places: int | None = None
    noise: float = 0.02

    def free_rate(self, workers: int, seconds: float) -> float:
        """Return what so many workers would train if they waited for nothing."""
        slow = floor(workers * self.slow_share + 1e-9)
        return self.speed(seconds) * (workers - slow + slow * self.slow_speed)

    def rate(self, workers: int, seconds: float, *, backlog: float = 0.0) -> float:
        """Return what so many workers train.

        Args:
            backlog: samples that have arrived and wait.
        """
        free = self.free_rate(workers, seconds)
        bound = min(self.servers(seconds), self.storage(seconds))
        if free <= 0:
            return 0.0
        rate = (free**-_BEND + bound**-_BEND) ** (-1 / _BEND) if bound < INFINITE else free
        if self.arrives is not None and backlog <= 0:
            rate = min(rate, self.arrives(seconds))
        return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a trace.

    Args:
        samples: that were trained.
        worker_seconds: that were paid for, those of booting too.
        value: samples, less `keep_gain` of a worker's speed for each of its seconds.
        decisions: as they were made.
        timeline: (seconds, workers that were wanted).
    """

    samples: float
    worker_seconds: float
    value: float
    decisions: tuple[Scaling, ...] = ()
    timeline: tuple[tuple[float, int], ...] = ()


class _Job:
    """A trace that goes on tick by tick."""

    def __init__(self, trace: Trace, options: ScalingOptions) -> None:
        self.trace = trace
        self.samples = self.worker_seconds = self.price_paid = 0.0
        self.backlog = 0.0
        self._keep = options.keep_gain

    def tick(self, now: float, *, up: int, paid: int) -> float:
        """Let a tick pass; return what was trained in it."""
        trace, tick = self.trace, _TICK_SECONDS
        rate = trace.rate(up, now, backlog=self.backlog)
        if trace.arrives is not None:
            arrived = trace.arrives(now)
            rate = min(rate, arrived + self.backlog / tick)
            self.backlog = max(0.0, self.backlog + (arrived - rate) * tick)
        self.samples += rate * tick
        self.worker_seconds += paid * tick
        self.price_paid += self._keep * trace.speed(now) * paid * tick
        return rate * tick

    def moments(self) -> Iterator[float]:
        """Yield the beginning of every tick."""
        for tick in range(int(self.trace.seconds / _TICK_SECONDS)):
            yield tick * _TICK_SECONDS

    def outcome(
        self,
        decisions: tuple[Scaling, ...] = (),
        timeline: tuple[tuple[float, int], ...] = (),
    ) -> Outcome:
        return Outcome(
            samples=self.samples,
            worker_seconds=self.worker_seconds,
            value=self.samples - self.price_paid,
            decisions=decisions,
            timeline=timeline,
        )


def by_policy(trace: Trace, options: ScalingOptions, *, seed: int = 0) -> Outcome:
    """Let the policy choose, by windows as it would measure them."""
    rng = random.Random(seed)
    policy = WorkerPolicy(options, least=trace.least, most=trace.most)
    job = _Job(trace, options)
    wanted = up = trace.first
    booting: list[float] = []  # when each is up
    decisions: list[Scaling] = []
    timeline = [(0.0, wanted)]
    window_began, trained, free, least_up = 0.0, 0.0, 0.0, up
    for now in job.moments():
        ready = [at for at in booting if at <= now]
        placed = len(ready) if trace.places is None else max(0, min(len(ready), trace.places - up))
        up += placed
        booting = [at for at in booting if at > now] + ready[placed:]
        trained += job.tick(now, up=up, paid=min(wanted, trace.places or wanted))
        free += trace.free_rate(up, now) * _TICK_SECONDS
        least_up = min(least_up, up)
        if now - window_began < options.window_seconds:
            continue
        seconds = now - window_began
        measured = trained / seconds * max(0.1, rng.gauss(1, trace.noise))
        used = trained / free if free else 1.0
        waits_for_data = trace.arrives is not None and job.backlog <= 0
        servers = trace.servers(now)
        window = Window(
            seconds=seconds,
            wanted=wanted,
            up=least_up,
            rate=measured,
            busy=min(1.0, _COMPUTES * used),
            starved=max(0.0, 1 - used) if waits_for_data else 0.0,
            server_load=0.0 if servers == INFINITE else min(1.0, trained / seconds / servers),
        )
        for decision in policy.look(now, window):
            if decision.realised is not None:
                continue
            decisions.append(decision)
            booting += [now + trace.boot_seconds] * max(0, decision.after - wanted)
            going = max(0, wanted - decision.after)
            while going and booting:
                booting.pop()
                going -= 1
            up -= going
            wanted = decision.after
            timeline.append((now, wanted))
        window_began, trained, free, least_up = now, 0.0, 0.0, up
    return job.outcome(decisions=tuple(decisions), timeline=tuple(timeline))


def by_number(trace: Trace, options: ScalingOptions, workers: int) -> Outcome:
    """Have a fixed number of workers."""
    job = _Job(trace, options)
    for now in job.moments():
        job.tick(now, up=workers, paid=workers)
    return job.outcome()


def by_oracle(trace: Trace, options: ScalingOptions, *, every: float = 10.0) -> Outcome:
    """Have the number that is worth most at every moment; it is told all, and waits for nobody."""
    job = _Job(trace, options)
    most = trace.most if trace.places is None else min(trace.most, trace.places)
    workers = trace.first
    for now in job.moments():
        if now % every == 0:
            price = options.keep_gain * trace.speed(now)
            values = {n: trace.rate(n, now) - price * n for n in range(trace.least, most + 1)}
            workers = max(values, key=lambda n: values[n])
        job.tick(now, up=workers, paid=workers)
    return job.outcome()


def regret(trace: Trace, options: ScalingOptions, *, seed: int = 0) -> float:
    """Return which part of the oracle's value the policy does not have."""
    best = by_oracle(trace, options).value
    return 1 - by_policy(trace, options, seed=seed).value / best


def changes(outcome: Outcome) -> int:
    """Return how often the number of workers was changed."""
    return sum(before != after for (_, before), (_, after) in pairwise(outcome.timeline))


# Jobs ---------------------------------------------------------------------------------------------


def _diurnal(seconds: float) -> float:
    """A day in four hours: from 4,000 samples a second to 28,000 and back."""
    return 16_000 - 12_000 * cos(2 * pi * seconds / 14_400)


def _spike(seconds: float) -> float:
    return 30_000.0 if 3600 <= seconds < 5400 else 6_000.0


TRACES = (
    Trace(name="steady", most=16),
    Trace(name="server-bound", servers=_always(12_000.0)),
    Trace(name="data-bound", storage=_always(9_500.0)),
    Trace(name="diurnal stream", arrives=_diurnal, seconds=14_400.0, first=4),
    Trace(name="spike in a stream", arrives=_spike, seconds=9_000.0, first=6),
    Trace(name="stragglers", slow_share=0.25, slow_speed=0.3, servers=_always(15_000.0)),
    Trace(name="noisy", storage=_always(9_500.0), noise=0.15),
    Trace(name="slower servers after an hour", servers=lambda t: 20_000.0 if t < 3600 else 8_000.0),
    Trace(name="too many at first", first=32, storage=_always(8_000.0)),
    Trace(name="a small cluster", places=6, boot_seconds=60.0),
)
