"""The clock of schedules: floor(samples applied / G), the same in every mode.

Global step k only orders records. Eviction, evaluation and learning rates run on this clock, so a
job behaves alike whether a step is a global batch or one local batch.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

Run = tuple[int, int, int, int]
"""Clock values whose first steps lie evenly: the first value, its step, the stride, how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """What a clock has to know to go on; its defaults are a clock that begins.

    Args:
        value: ticks so far.
        samples: applied since the last tick.
        first_steps: where the latest values began, oldest first.
    """

    value: int = 0
    samples: int = 0
    first_steps: tuple[Run, ...] = ((0, 0, 0, 1),)

    def check(self, *, step: int) -> None:
        """Raise ValueError where this is the state of no clock that has come to `step`."""
        if min(self.value, self.samples) < 0:
            raise ValueError(f"the clock is at {self.value} and {self.samples} samples")
        check_first_steps(self.first_steps, value=self.value, step=step)


class ScheduleClock:
    """Maps steps to clock values and back.

    Args:
        global_batch: G, samples of one tick.
        remembered: how far back `first_step_at` is asked for, in ticks.
        start: where it begins; at most `remembered` values of it are kept.

    Attributes:
        value: ticks so far.
        samples: applied since the last one.
    """

    def __init__(
        self, global_batch: int, *, remembered: int, start: ClockState = ClockState()
    ) -> None:
        self._global_batch = global_batch
        self._remembered = remembered
        self.samples = start.samples
        self.value = start.value
        # Of values value - remembered to value. Steps of one size make one run, so that a month
        # of them takes no more memory than a minute.
        self._runs: list[Run] = list(start.first_steps)
        self._forget()

    def advance(self, samples: int, *, next_step: int) -> None:
        """Count the samples that a step applied; `next_step` is the one after it."""
        ticks, self.samples = divmod(self.samples + samples, self._global_batch)
        for _ in range(ticks):
            self.value += 1
            self._begin(next_step)
        if ticks:
            self._forget()

    def first_step_at(self, clock: int) -> int:
        """Return the first step that began at `clock` or later; 0 where that is forgotten."""
        at = bisect.bisect_right(self._runs, clock, key=lambda run: run[0]) - 1
        if at < 0:
            return 0
        first, step, stride, _ = self._runs[at]
        return step + stride * (clock - first)

    def state(self) -> ClockState:
        """Return what another clock needs to go on from here."""
        return ClockState(value=self.value, samples=self.samples, first_steps=tuple(self._runs))

    def _begin(self, step: int) -> None:
        if self._runs:
            first, at, stride, count = self._runs[-1]
            if count == 1 or step == at + stride * count:
                self._runs[-1] = (first, at, step - at if count == 1 else stride, count + 1)
                return
        self._runs.append((self.value, step, 0, 1))

    def _forget(self) -> None:
        oldest = self.value - self._remembered
        gone = 0
        while gone < len(self._runs) and self._runs[gone][0] + self._runs[gone][3] <= oldest:
            gone += 1
        del self._runs[:gone]
        if self._runs and self._runs[0][0] < oldest:
            first, step, stride, count = self._runs[0]
            passed = oldest - first
            self._runs[0] = (oldest, step + stride * passed, stride, count - passed)


def check_first_steps(runs: Sequence[Run], *, value: int, step: int) -> None:
    """Raise ValueError unless runs are of rising clock values up to `value`, none after `step`."""
    clock, last = (runs[0][0] if runs else 0), 0
    for first, at, stride, count in runs:
        if first != clock or at < last or stride < 0 or count < 1:
            raise ValueError("the first steps of clock values don't rise")
        clock, last = first + count, at + stride * (count - 1)
    if clock != value + 1 or last > step:
        raise ValueError(f"the first steps of clock values don't end at clock {value}, step {step}")
