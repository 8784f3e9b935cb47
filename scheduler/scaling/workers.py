"""How many workers a job should have, by what each that was added has brought.

The rate of n workers is measured, never assumed: a number is tried, and stays if the workers
between pay. What can be predicted spares trials: a station that is busy for a share u of the time
can't do more than rate / u (the utilisation law of queueing networks, Denning and Buzen 1978).
"""

from dataclasses import dataclass, replace
from math import ceil, floor, sqrt
from statistics import fmean, stdev

from scheduler.scaling.decisions import Cause, Scaling, ScalingOptions, Window, figures_of

# A change of the rate by more than this part makes what was learned before worthless.
_CHANGED = 0.25
# Of what workers can do together; the rest is for chance.
_FILL = 0.9
# Where it is not a fifth of the workers that would not be needed, they stay.
_LEAST_IDLE = 0.2
# Workers that compute less of their time may be too many.
_IDLE = 0.6
# Less than this part of the workers can't be told from chance.
_LEAST_STEP = 0.1
# A share of waiting for leases above which workers have too little to do.
_STARVED = 0.1
_MOST_HOLDS = 8
_INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class _Level:
    """A measurement: samples per second with so many workers, and its standard error."""

    workers: int
    rate: float
    error: float

    @property
    def each(self) -> float:
        return self.rate / self.workers


@dataclass(slots=True)
class _Learned:
    """A number of workers that did not pay, or did not do.

    Args:
        workers, rate: that number, and what it trained.
        back: to which the job went back.
        until: when it may be tried again.
        usual: what that many train, once it is measured.
    """

    workers: int
    rate: float
    back: int
    until: float
    usual: float | None = None


class WorkerPolicy:
    """Looks at windows, and says how many workers are wanted.

    Args:
        least, most: bounds of the number.

    Attributes:
        why: it wants the number that it wants, in words, as of the last look.
    """

    def __init__(self, options: ScalingOptions, *, least: int, most: int) -> None:
        self.why = "nothing is measured yet"
        self._options = options
        self._least, self._most = least, most
        self._decisions = 0
        self._open: Scaling | None = None  # what came of it is not known yet
        self._base: _Level | None = None  # by which that is judged
        self._workers = 0
        self._measured: list[Window] = []
        self._settles = False
        self._missing_since: float | None = None
        self._best_each = 0.0
        self._vain: _Learned | None = None
        self._missed: _Learned | None = None
        self._hold = options.hold_seconds
        self._stride = most  # at first the number doubles

    def restarted(self) -> None:
        """What was measured is of another mode, or of a job that was held: begin anew."""
        self._open = self._base = self._missing_since = None
        self._vain = self._missed = None
        self._workers = 0
        self._measured = []
        self._best_each = 0.0
        self._hold = self._options.hold_seconds
        self._stride = self._most

    def look(self, now: float, window: Window) -> list[Scaling]:
        """Take a window that is over.

        Returns:
            A decision that was made before, with what came of it, and a new one; each may lack.
        """
        if window.up < window.wanted:
            return self._waits_for_place(now, window)
        self._missing_since = None
        if window.wanted != self._workers:
            if self._open is not None and window.wanted != self._open.after:
                self._open = self._base = None  # somebody else wants another number
            self._workers = window.wanted
            self._measured = []
            self._settles = True
        if self._settles:  # who has just come up has cold caches
            self._settles = False
            return []
        self._measured.append(window)
        level = self._level()
        if level is None:
            return []
        self._measured = []
        self._vain = self._counts(now, level, self._vain)
        self._missed = self._counts(now, level, self._missed)
        done = [] if self._open is None else [replace(self._open, realised=level.rate)]
        retreats = self._open is not None and self._open.cause == "no gain"
        self._open = None
        if self._base is not None:
            return done + self._judge(now, level, self._base, window, retreats=retreats)
        return done + self._next(now, level, window)

    # Measuring --------------------------------------------------------------------------------

    def _level(self) -> _Level | None:
        """Return what was measured, once there is enough of it."""
        rates = [window.rate for window in self._measured]
        if len(rates) < self._options.windows:
            return None
        level = _Level(self._workers, fmean(rates), stdev(rates) / sqrt(len(rates)))
        enough = len(rates) >= 4 * self._options.windows
        return level if enough or self._is_sure(level) else None

    def _is_sure(self, level: _Level) -> bool:
        """Whether a gain that counts would be seen through what the windows differ by."""
        base = self._base
        if base is None:
            step = max(1, _LEAST_STEP * level.workers)
            return level.error <= self._options.keep_gain * level.each * step / 2
        least = self._options.keep_gain * base.each * abs(level.workers - base.workers)
        return sqrt(level.error**2 + base.error**2) <= least / 2

    # Judging what was tried -------------------------------------------------------------------

    def _judge(
        self, now: float, level: _Level, base: _Level, window: Window, *, retreats: bool
    ) -> list[Scaling]:
        """Say what becomes of a number that was tried.

        Args:
            base: with which it is compared.
            retreats: whether it was tried since more did not pay.
        """
        self._base = None
        grown = level.workers > base.workers
        few, many = (base, level) if grown else (level, base)
        gain = (many.rate - few.rate) / (many.workers - few.workers)
        share = gain / few.each if few.each > 0 else 0.0
        pays = share >= self._options.keep_gain
        if pays == grown:  # it has paid, or what has gone did not
            if grown:
                self._missed = None
            if grown and not retreats:
                self._stride = 2 * (level.workers - base.workers)
                self._hold = self._options.hold_seconds
            self._best_each = max(self._best_each, level.each)
            return self._next(now, level, window)
        brought = f"each brought {share:.0%} of what those before bring"
        if grown:
            return self._too_many(now, level, base, brought, window)
        self._missed = self._learn(now, level, base.workers)
        self._best_each = max(level.each, base.each)
        reason = f"the {base.workers - level.workers} that went are missed: {brought}"
        return self._decide(base.workers, "missed", reason, base.rate, level, window)

    def _too_many(
        self, now: float, level: _Level, base: _Level, brought: str, window: Window
    ) -> list[Scaling]:
        """Go back to where workers would still pay if the rate rose up to here and no further."""
        step = max(1, floor(_LEAST_STEP * level.workers))
        knee = round(level.rate / base.each) if base.each > 0 else base.workers
        knee = min(knee, level.workers - step)
        back = knee if knee - base.workers >= step else base.workers
        self._vain = self._learn(now, level, back)
        reason = f"{level.workers - base.workers} more do not pay: {brought}"
        if back > base.workers:
            predicted = min(base.each * knee, level.rate)
            return self._decide(
                knee, "no gain", reason, predicted, level, window, trial=True, base=base
            )
        return self._decide(base.workers, "no gain", reason, base.rate, level, window)

    def _learn(self, now: float, level: _Level, back: int) -> _Learned:
        learned = _Learned(level.workers, level.rate, back, now + self._hold)
        self._stride = 1
        self._hold = min(2 * self._hold, _MOST_HOLDS * self._options.hold_seconds)
        return learned

    def _counts(self, now: float, level: _Level, learned: _Learned | None) -> _Learned | None:
        """Return what was learned, unless time or another rate of the job has made it worthless."""
        if learned is None or now >= learned.until:
            return None
        if level.workers != learned.back:
            return learned
        if learned.usual is None:
            learned.usual = level.rate
        changed = abs(level.rate - learned.usual) > _CHANGED * max(level.rate, learned.usual)
        return None if changed else learned

    # Trying -----------------------------------------------------------------------------------

    def _next(self, now: float, level: _Level, window: Window) -> list[Scaling]:
        self._best_each = max(self._best_each, level.each)
        if window.busy < _IDLE:  # they wait for something: would fewer do?
            return self._fewer(level, window) or self._more(level, window)
        return self._more(level, window) or self._fewer(level, window)

    def _more(self, level: _Level, window: Window) -> list[Scaling]:
        n, rate = level.workers, level.rate
        top, bound = self._bound(level, window)
        step = max(1, floor(_LEAST_STEP * n))
        limit = min(self._most, 2 * n, n + max(self._stride, step))
        if self._vain is not None:
            limit = min(limit, self._vain.workers - 1)
            bound = bound or f"{self._vain.workers} workers did not pay"
        if window.useful_workers is not None:
            limit = min(limit, window.useful_workers)
        if rate > 0 and top < rate * limit / n:
            limit = floor(n * top / rate)
        if rate <= 0:
            self.why = "nothing ends"
        elif limit - n < step or limit <= n:
            self.why = self._why_no_more(n, bound, window)
        elif self._ends_soon(level, window):
            self.why = "the job ends before more workers would have paid"
        else:
            predicted = min(rate * limit / n, top)
            reason = f"{n} train {level.each:,.0f} samples/s each, and nothing else binds"
            return self._decide(limit, "gain", reason, predicted, level, window, trial=True)
        return []

    def _bound(self, level: _Level, window: Window) -> tuple[float, str]:
        """Return the most samples per second that any number of workers could train, and why."""
        if window.starved > _STARVED:
            part = f"they wait for batches {window.starved:.0%} of their time"
            return level.rate, f"workers have too little to do: {part}"
        bounds = [(_INFINITE, "")]
        if self._vain is not None:
            vain = self._vain
            bounds.append((vain.rate, f"{vain.workers} workers trained {vain.rate:,.0f} samples/s"))
        for name, load in (
            ("the servers bind: the busiest applies", window.server_load),
            ("the coordinator binds: it works", window.coordinator_load),
        ):
            if load > 0:
                bounds.append((level.rate / min(load, 1.0), f"{name} {load:.0%} of the time"))
        return min(bounds)

    def _why_no_more(self, n: int, bound: str, window: Window) -> str:
        if n >= self._most:
            return f"{n} workers are the most that it may have"
        if window.useful_workers is not None and n >= window.useful_workers:
            return f"a step has {window.useful_workers} batches: more workers would have none"
        return bound or "a smaller step could not be told from chance"

    def _ends_soon(self, level: _Level, window: Window) -> bool:
        """Whether what is left takes no longer than it takes to find out whether more would pay."""
        if window.samples_left is None:
            return False
        trial = 2 * (self._options.windows + 1) * self._options.window_seconds
        return window.samples_left < level.rate * trial

    def _fewer(self, level: _Level, window: Window) -> list[Scaling]:
        n = level.workers
        able = self._best_each
        if window.busy < _IDLE:
            able = max(able, level.each / max(window.busy, 0.05))
        need = ceil(level.rate / (able * _FILL)) if able > 0 else self._least
        if window.useful_workers is not None:
            need = min(need, window.useful_workers)
        need = max(need, self._least)
        if self._missed is not None:
            need = max(need, self._missed.workers + 1)
        if n - need < max(1, floor(_LEAST_IDLE * n)):
            return []
        # Half at most: what a worker could do is an estimate.
        after = max(need, n // 2)
        reason = (
            f"{n} train {level.each:,.0f} samples/s each and compute {window.busy:.0%} of their"
            f" time, where each could train {able:,.0f}"
        )
        return self._decide(after, "idle", reason, level.rate, level, window, trial=True)

    # Workers without a place ------------------------------------------------------------------

    def _waits_for_place(self, now: float, window: Window) -> list[Scaling]:
        self._measured = []
        self._settles = True
        if self._missing_since is None:
            self._missing_since = now - window.seconds
        waited = now - self._missing_since
        self.why = f"{window.wanted - window.up} of {window.wanted} workers are not at work yet"
        after = max(window.up, self._least)
        if waited < self._options.place_seconds or after >= window.wanted:
            return []
        self._missing_since = self._open = self._base = None
        level = _Level(window.wanted, window.rate, 0.0)
        self._vain = self._learn(now, _Level(after + 1, _INFINITE, 0.0), after)
        reason = f"the cluster has had no place for {window.wanted - after} of them for"
        return self._decide(
            after, "no place", f"{reason} {waited:.0f} s", window.rate, level, window
        )

    # Deciding ---------------------------------------------------------------------------------

    def _decide(
        self,
        after: int,
        cause: Cause,
        reason: str,
        predicted: float,
        level: _Level,
        window: Window,
        *,
        trial: bool = False,
        base: _Level | None = None,
    ) -> list[Scaling]:
        """Want another number.

        Args:
            trial: whether it is judged when it has been measured.
            base: with what it is compared then; None: what was measured now.
        """
        self._decisions += 1
        decision = Scaling(
            number=self._decisions,
            role="worker",
            before=level.workers,
            after=after,
            cause=cause,
            reason=reason,
            rate=level.rate,
            predicted=predicted,
            figures=figures_of(window),
        )
        self._open, self._base = decision, (base or level) if trial else None
        self.why = f"{after} workers are tried" if trial else reason
        return [decision]
