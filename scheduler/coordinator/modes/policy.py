"""When `auto` shifts between `sync` and `gba`: a plain state machine over windows of training.

Time is an argument, in seconds of any steady clock. docs/modes.md says what it does for a user.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import Literal

from embedding.spec.ranges import require, require_finite, require_not_negative, require_positive
from scheduler.coordinator.modes.sync_pace import sync_step_seconds

ShiftingMode = Literal["sync", "gba"]

# The mean of n batches that is within this / sqrt(n) of the fleet's median is taken for the median:
# 3.5 standard deviations of batch times that vary by 30 % either way. Else the slowest of many
# even workers would always look like a straggler.
_NOISE = 0.6

# A step of sync may take a window, and its samples count when it is applied: of so many windows
# that is a tenth at most. What is below the least share has another cause than the mode.
_SHARE_WINDOWS = 12
_LEAST_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """When to shift.

    Args:
        window_seconds: how long figures are gathered before they are looked at.
        windows: how many windows in a row must ask for the same shift.
        to_gba_ratio: predicted rate of gba / of sync above which sync is left.
        to_sync_ratio: the ratio below which gba is left; > 1, which even workers have, and below
            `to_gba_ratio`.
        min_dwell_seconds: least time in a mode.
    """

    window_seconds: float = 5.0
    windows: int = 3
    to_gba_ratio: float = 1.2
    to_sync_ratio: float = 1.1
    min_dwell_seconds: float = 30.0

    def __post_init__(self) -> None:
        require_positive("window_seconds", self.window_seconds)
        require(self.windows >= 1, f"windows must be >= 1, got {self.windows}")
        require_finite("to_gba_ratio", self.to_gba_ratio)
        require(
            1 < self.to_sync_ratio < self.to_gba_ratio,
            f"to_sync_ratio must be above 1 and below to_gba_ratio, {self.to_gba_ratio}, "
            f"got {self.to_sync_ratio}",
        )
        require_not_negative("min_dwell_seconds", self.min_dwell_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the figures of one window say, in samples per second.

    Args:
        sync_rate, gba_rate: what either mode would train, by batch times and by what was realised.
        realised_rate: samples that were applied in the window, in the mode of the window.
    """

    sync_rate: float
    gba_rate: float
    realised_rate: float

    @property
    def ratio(self) -> float:
        return self.gba_rate / self.sync_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the policy makes of a window; `reason` is for people."""

    prediction: Prediction
    shift_to: ShiftingMode | None
    reason: str


class _Share:
    """Which share a mode trains of what batch times alone allow it: the latest windows of it.

    The rest goes to barriers whose batches differ, to ways to servers and coordinator, to cores
    that workers share: what no time of a batch shows, and every window does.
    """

    def __init__(self) -> None:
        self._windows: deque[tuple[float, float]] = deque(maxlen=_SHARE_WINDOWS)

    def add(self, *, realised: float, predicted: float) -> None:
        """Take the samples that a window applied, and those that batch times allow."""
        self._windows.append((realised, predicted))

    def value(self) -> float:
        """Return it; 1 where the job was not in this mode yet."""
        predicted = sum(window[1] for window in self._windows)
        if not predicted:
            return 1.0
        realised = sum(window[0] for window in self._windows)
        return min(1.0, max(_LEAST_SHARE, realised / predicted))


@dataclass(slots=True)
class _Worker:
    """Times of one worker.

    Args:
        since: when it last ended a batch or was given one while it held none.
        ended: batches since it joined.
        batches, samples, seconds: of the window.
        estimate: seconds of a batch as last known, 0: not known; `behind` so many batches.
    """

    since: float
    ended: int = 0
    batches: int = 0
    samples: int = 0
    seconds: float = 0.0
    estimate: float = 0.0
    behind: int = 1


class SwitchPolicy:
    """Predicts both modes' rates from batch times, and says when to shift.

    Args:
        group_size: M, local batches of a global batch.
        global_batch: G, in samples.
        depth: tokens that a worker holds beside the batch that it computes.
    """

    def __init__(
        self,
        options: PolicyOptions,
        *,
        group_size: int,
        global_batch: int,
        depth: int,
    ) -> None:
        self.options = options
        self._group_size = group_size
        self._depth = depth
        self._samples_per_batch = global_batch / group_size
        self._workers: dict[int, _Worker] = {}
        self._shares: dict[ShiftingMode, _Share] = {"sync": _Share(), "gba": _Share()}
        # None until the first batch has ended: starting up is not part of any window.
        self._window_began: float | None = None
        self._mode_began = 0.0
        self._barrier_opened = self._resumed = float("-inf")
        self._samples_now = self._samples_before = 0
        self._agreeing = 0
        # Whether the last window shows what the mode trains, and not what somebody waited for.
        self._realises = False

    # Events -----------------------------------------------------------------------------------

    def working(self, worker: int, *, now: float) -> None:
        """A worker got a token while it held none; also the way to join."""
        self._workers.setdefault(worker, _Worker(now)).since = now

    def finished(self, worker: int, *, samples: int, seconds: float, now: float) -> None:
        """A worker has ended a batch, after so many seconds of pulling and computing."""
        state = self._workers.setdefault(worker, _Worker(now))
        if state.ended == 1:
            # The first batch may have waited for compilers and empty caches.
            state.batches, state.samples, state.seconds = 0, 0, 0.0
        state.since = now
        state.ended += 1
        state.batches += 1
        state.samples += samples
        state.seconds += seconds
        if self._window_began is None:
            self._begin(now)

    def gone(self, worker: int) -> None:
        """A worker was lost or has left."""
        self._workers.pop(worker, None)

    def step_applied(self, now: float) -> None:
        """A step was applied everywhere; in sync, who waited for it begins a batch now."""
        self._barrier_opened = now

    def resumed(self, now: float) -> None:
        """Training goes on after an evaluation or a pause: no one has worked in between."""
        self._resumed = now
        if self._window_began is not None:
            self._begin_window(now)

    def shifted(self, now: float) -> None:
        """The mode was changed, by the policy or by hand: windows and dwell begin anew."""
        self._barrier_opened = now
        self._begin(now)

    # Decisions --------------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether the window is over, so that `look` would look."""
        began = self._window_began
        return began is not None and now - began >= self.options.window_seconds

    def look(
        self,
        now: float,
        *,
        mode: ShiftingMode,
        samples_applied: int,
        apply_rate: float | None,
        busy: Collection[int] | None = None,
    ) -> Verdict | None:
        """Return what a window says at its end; None before that, and where it can't say anything.

        Args:
            samples_applied: samples that were applied since the job began.
            apply_rate: samples per second that the servers can apply, > 0; None: not known.
            busy: workers that hold a batch that they need not wait for; in sync, one of the step
                that is under way. None: all. Needed only where `is_due`. Of the others nothing is
                concluded from their silence.
        """
        self._samples_now = samples_applied
        if not self.is_due(now):
            return None
        known = self._end_window(now, mode, busy)
        seconds = now - self._began
        realised = (samples_applied - self._samples_before) / seconds
        self._begin_window(now)
        if not known:
            return None
        allowed = self._allowed()
        if self._realises:
            self._shares[mode].add(realised=realised * seconds, predicted=allowed[mode] * seconds)
        limit = float("inf") if apply_rate is None else apply_rate
        sync, gba = (min(limit, rate * self._shares[m].value()) for m, rate in allowed.items())
        prediction = Prediction(sync_rate=sync, gba_rate=gba, realised_rate=realised)
        return self._judge(prediction, mode, now)

    def _judge(self, prediction: Prediction, mode: ShiftingMode, now: float) -> Verdict:
        options, ratio = self.options, prediction.ratio
        target: ShiftingMode
        if mode == "sync":
            target, wanted = "gba", ratio > options.to_gba_ratio
            bound = f"above {options.to_gba_ratio:g}"
        else:
            target, wanted = "sync", ratio < options.to_sync_ratio
            bound = f"below {options.to_sync_ratio:g}"
        self._agreeing = self._agreeing + 1 if wanted else 0
        dwelt = now - self._mode_began
        reason = f"gba would train {ratio:.2f} times as fast as sync"
        shift = False
        if not wanted:
            reason += f", not {bound}"
        elif self._agreeing < options.windows:
            reason += f", {bound} for {self._agreeing} of {options.windows} windows"
        elif dwelt < options.min_dwell_seconds:
            reason += f", but {mode} only for {dwelt:.0f} of {options.min_dwell_seconds:g} s"
        else:
            reason += f", {bound} for {self._agreeing} windows"
            shift = True
        return Verdict(prediction=prediction, shift_to=target if shift else None, reason=reason)

    # Figures ----------------------------------------------------------------------------------

    def _end_window(self, now: float, mode: ShiftingMode, busy: Collection[int] | None) -> bool:
        """Bring every worker's estimate up to date; return whether the window counts."""
        started = self._resumed if mode == "gba" else max(self._resumed, self._barrier_opened)
        counts = self._realises = True
        samples = sum(worker.samples for worker in self._workers.values())
        batches = sum(worker.batches for worker in self._workers.values())
        if samples:
            self._samples_per_batch = samples / batches
        for number, worker in self._workers.items():
            at_work = busy is None or number in busy
            if worker.ended - worker.batches <= 1:  # others may have waited for its first batch
                self._realises = False
            if worker.batches:
                worker.estimate, worker.behind = worker.seconds / worker.batches, worker.batches
            elif at_work:
                self._realises = False
                counts &= self._silent(worker, now - max(worker.since, started))
            worker.batches, worker.samples, worker.seconds = 0, 0, 0.0
        return counts and any(worker.ended and worker.estimate for worker in self._workers.values())

    def _silent(self, worker: _Worker, silence: float) -> bool:
        """Conclude what there is from a busy worker that ended nothing; False: nothing yet."""
        if not worker.ended and silence < self.options.window_seconds:
            return False
        if silence > worker.estimate:
            worker.estimate, worker.behind = silence, 1
        return True

    def _allowed(self) -> dict[ShiftingMode, float]:
        """Return the samples per second that batch times alone allow."""
        estimates = self._even_out()
        step = sync_step_seconds(estimates, group_size=self._group_size, depth=self._depth)
        return {
            "sync": self._samples_per_batch * self._group_size / step,
            "gba": self._samples_per_batch * sum(1 / seconds for seconds in estimates),
        }

    def _even_out(self) -> list[float]:
        """Return each worker's seconds of a batch, without what chance explains."""
        known = [worker for worker in self._workers.values() if worker.estimate > 0]
        centre = median(worker.estimate for worker in known)
        return [
            centre
            if abs(worker.estimate / centre - 1) <= _NOISE / sqrt(worker.behind)
            else worker.estimate
            for worker in known
        ]

    # Windows ----------------------------------------------------------------------------------

    @property
    def _began(self) -> float:
        assert self._window_began is not None, "no batch has ended yet"
        return self._window_began

    def _begin(self, now: float) -> None:
        self._mode_began = now
        self._agreeing = 0
        self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._window_began = now
        self._samples_before = self._samples_now
        for worker in self._workers.values():
            worker.batches, worker.samples, worker.seconds = 0, 0, 0.0
