"""Which buckets move so that servers are equally busy: a plan, and when it is worth a move."""

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import NUM_BUCKETS
from scheduler.scaling.decisions import ScalingOptions

Buckets = npt.NDArray[np.uint16]
Loads = npt.NDArray[np.int64]

# How far above the mean the busiest server may be left by a plan: so much less than what a plan is
# made for that what loads vary by makes no other one.
LEFT_SKEW = 1.05
# A shard may get so many times its share of the buckets, and so of the rows.
MOST_BUCKETS = 1.5
# Of what a plan should take away at least, of what is above the mean.
LEAST_GAIN = 0.5
_MOST_HOLDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalancing:
    """One decision to move buckets between servers.

    Skew is the load of the busiest server over the mean of all, 1 where they are equal.

    Args:
        number: counts the decisions, from 1.
        skew: before.
        predicted, realised: skew after it; None: it is not known (yet).
        buckets: that move.
        hottest: the load of the bucket that has most, over the mean of the servers'. No plan can
            bring the skew below that.
        held_back: why it is not carried out; None: it is.
        time: seconds since 1970, told by whoever carries it out.
    """

    number: int
    skew: float
    predicted: float
    buckets: int
    hottest: float
    realised: float | None = None
    held_back: str | None = None
    time: float = 0.0


def described(decision: Rebalancing) -> str:
    """Say in a line what is decided and why."""
    text = (
        f"the busiest server has {decision.skew:.2f} times the mean load: {decision.buckets}"
        f" buckets move, {decision.predicted:.2f} times is predicted"
    )
    if decision.realised is not None:
        return f"{text}, {decision.realised:.2f} times came of it"
    return text if decision.held_back is None else f"{text}; held back: {decision.held_back}"


def load_of_shards(buckets: Buckets, loads: Loads, num_shards: int) -> npt.NDArray[np.int64]:
    """Return the load of each shard, int64[shards]."""
    found = np.zeros(num_shards, np.int64)
    np.add.at(found, buckets, loads)
    return found


def skew_of(buckets: Buckets, loads: Loads, num_shards: int) -> float:
    """Return the load of the busiest shard over the mean; 1 where there is no load."""
    of_shards = load_of_shards(buckets, loads, num_shards)
    total = int(of_shards.sum())
    return num_shards * int(of_shards.max()) / total if total else 1.0


def evened_out(buckets: Buckets, loads: Loads, num_shards: int) -> Buckets:
    """Return buckets moved so that no shard has much more load than the mean.

    The hottest ones that fit move first, so that few do: buckets have equal shares of the rows,
    and so of the bytes. A bucket moves once at most, away from a shard that is above the mean, to
    the one that has least; what is one bucket's load can't be split. Where more buckets would have
    to move than a shard may have, the rest stays uneven.

    Args:
        buckets: uint16[4096], the shard of each.
        loads: int64[4096], not negative.
    """
    found = buckets.copy()
    of_shards = load_of_shards(buckets, loads, num_shards).tolist()
    mean = sum(of_shards) / num_shards
    # What holds one bucket that has more than the mean can't come below it.
    limit = LEFT_SKEW * max(mean, int(loads.max(initial=0)))
    held: list[list[tuple[int, int]]] = [[] for _ in range(num_shards)]  # ascending by load
    for bucket in np.argsort(loads, kind="stable").tolist():
        held[buckets[bucket]].append((int(loads[bucket]), bucket))
    counts = [len(of_shard) for of_shard in held]
    most = MOST_BUCKETS * len(buckets) / num_shards
    givers = [(load, shard) for shard, load in enumerate(of_shards) if load > limit]
    givers.sort()
    while givers:
        _, giver = givers.pop()
        takers = [shard for shard in range(num_shards) if counts[shard] < most]
        taker = min(takers, key=lambda shard: of_shards[shard], default=giver)
        room = min(of_shards[giver] - mean, limit - of_shards[taker])
        # What does not fit makes the two more alike at least.
        halfway = (of_shards[giver] - of_shards[taker]) / 2
        at = _largest(held[giver], room)
        at = at if at is not None else _largest(held[giver], halfway)
        if at is None:
            continue
        load, bucket = held[giver].pop(at)
        found[bucket] = taker
        counts[giver], counts[taker] = counts[giver] - 1, counts[taker] + 1
        of_shards[giver] -= load
        of_shards[taker] += load
        for shard in (giver, taker):
            if of_shards[shard] > limit and all(shard != other for _, other in givers):
                insort(givers, (of_shards[shard], shard))
    return found


def _largest(held: list[tuple[int, int]], room: float) -> int | None:
    """Return where in an ascending list the largest load is that fits, None: there is none."""
    at = bisect_right(held, room, key=lambda each: each[0]) - 1
    return at if at >= 0 and held[at][0] > 0 else None


def _nothing() -> Loads:
    return np.zeros(NUM_BUCKETS, np.int64)


@dataclass(slots=True)
class _Open:
    """A decision whose outcome is not known yet.

    Args:
        before, buckets: where they were, and are to be.
        loads, windows: what was measured since they are there, in how many windows.
    """

    decision: Rebalancing
    before: Buckets
    buckets: Buckets
    loads: Loads = field(default_factory=_nothing)
    windows: int = 0


class BalancePolicy:
    """Looks at windows of measured load, and says where buckets should be.

    It decides once the skew was above `options.most_skew` for so many windows in a row as make a
    measurement, by the load of all of them, and measures as long what came of it. Then it decides
    nothing for `options.hold_seconds`; twice as long, up to 8 times, where it had to decide again
    soon after that, as where other keys become hot all the time. Where no plan takes away half of
    what is above the mean, as where one key has it all, that is told once.

    Args:
        options: of scaling.

    Attributes:
        skew: of the last window; None: nothing was measured.
    """

    def __init__(self, options: ScalingOptions) -> None:
        self.skew: float | None = None
        self._options = options
        self._number = 0
        self._holds = 1
        self._not_before = -math.inf
        self._again_until = -math.inf  # a decision until then is one of a row
        self._open: _Open | None = None
        self._told_hopeless = False
        self.restarted()

    def restarted(self) -> None:
        """What was measured is of no use, as where the job has gone back."""
        self._loads = _nothing()
        self._windows = 0
        self.skew = None
        if self._open is not None:
            self._open = replace(self._open, loads=_nothing(), windows=0)

    def look(
        self, now: float, buckets: Buckets, loads: Loads, num_shards: int
    ) -> tuple[list[Rebalancing], Buckets | None]:
        """Take a window that is over.

        Args:
            now: seconds of any steady clock.
            buckets: uint16[4096], the shard of each.
            loads: int64[4096], what was measured in the window.

        Returns:
            What is decided or has become known; and where buckets should be, if elsewhere.
        """
        if not loads.any() or num_shards == 1:
            return [], None
        self.skew = skew_of(buckets, loads, num_shards)
        if self._open is not None:
            return self._outcome(self._open, now, buckets, loads, num_shards), None
        if self.skew <= self._options.most_skew or now < self._not_before:
            self._loads, self._windows = _nothing(), 0
            if self.skew <= self._options.most_skew:
                self._told_hopeless = False
            return [], None
        self._loads = self._loads + loads
        self._windows += 1
        if self._windows < self._options.windows:
            return [], None
        return self._decide(now, buckets, num_shards)

    def _decide(
        self, now: float, buckets: Buckets, num_shards: int
    ) -> tuple[list[Rebalancing], Buckets | None]:
        loads, self._loads, self._windows = self._loads, _nothing(), 0
        skew = skew_of(buckets, loads, num_shards)
        planned = evened_out(buckets, loads, num_shards)
        decision = Rebalancing(
            number=self._number + 1,
            skew=skew,
            predicted=skew_of(planned, loads, num_shards),
            buckets=int(np.count_nonzero(planned != buckets)),
            hottest=num_shards * int(loads.max()) / int(loads.sum()),
        )
        if decision.predicted - 1 > (1 - LEAST_GAIN) * (skew - 1):
            if self._told_hopeless:
                return [], None
            self._told_hopeless = True
            self._number += 1
            is_one = decision.hottest >= decision.predicted / LEFT_SKEW
            text = "one bucket has that load" if is_one else "a server would have too many buckets"
            return [replace(decision, held_back=text)], None
        self._number += 1
        self._holds = min(2 * self._holds, _MOST_HOLDS) if now <= self._again_until else 1
        self._open = _Open(decision, buckets, planned)
        return [decision], planned

    def _outcome(
        self, opened: _Open, now: float, buckets: Buckets, loads: Loads, num_shards: int
    ) -> list[Rebalancing]:
        """Measure what came of a decision, once it is done."""
        if not np.array_equal(buckets, opened.buckets):
            if not np.array_equal(buckets, opened.before):
                self._open = None  # something else was done
            return []
        opened.loads = opened.loads + loads
        opened.windows += 1
        if opened.windows < self._options.windows:
            return []
        self._open = None
        decision = opened.decision
        realised = skew_of(buckets, opened.loads, num_shards)
        seconds = self._holds * self._options.hold_seconds
        self._not_before, self._again_until = now + seconds, now + 2 * seconds
        return [replace(decision, realised=realised)]
