"""The steps at which the latest values of a clock began, in little memory."""

import bisect
from collections.abc import Iterable, Sequence

Run = tuple[int, int, int, int]
"""Clock values whose first steps lie evenly: the first value, its step, the stride, how many."""


class FirstSteps:
    """First steps of consecutive clock values.

    Steps of one size make one run, so that a month of them takes no more memory than a minute.

    Args:
        runs: to go on from, oldest first.
        remembered: how far back `first_step_at` is asked for, in ticks.
    """

    def __init__(self, runs: Iterable[Run] = (), *, remembered: int) -> None:
        self._remembered = remembered
        self._runs: list[Run] = list(runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(self._runs)

    def begin(self, value: int, step: int) -> None:
        """A clock value, the one after those before, begins at a step."""
        if self._runs:
            first, at, stride, count = self._runs[-1]
            if count == 1 or step == at + stride * count:
                self._runs[-1] = (first, at, step - at if count == 1 else stride, count + 1)
                return
        self._runs.append((value, step, 0, 1))

    def forget(self, *, now: int) -> None:
        """Forget the values that nobody asks for any more at a clock value."""
        oldest = now - self._remembered
        gone = 0
        while gone < len(self._runs) and self._runs[gone][0] + self._runs[gone][3] <= oldest:
            gone += 1
        del self._runs[:gone]
        if self._runs and self._runs[0][0] < oldest:
            first, step, stride, count = self._runs[0]
            passed = oldest - first
            self._runs[0] = (oldest, step + stride * passed, stride, count - passed)

    def first_step_at(self, value: int) -> int:
        """Return the first step that began at a value or a later one; 0 where it is forgotten."""
        at = bisect.bisect_right(self._runs, value, key=lambda run: run[0]) - 1
        if at < 0:
            return 0
        first, step, stride, _ = self._runs[at]
        return step + stride * (value - first)


def check_first_steps(runs: Sequence[Run], *, value: int, step: int) -> None:
    """Raise ValueError unless runs are of rising clock values up to `value`, none after `step`."""
    clock, last = (runs[0][0] if runs else 0), 0
    for first, at, stride, count in runs:
        if first != clock or at < last or stride < 0 or count < 1:
            raise ValueError("the first steps of clock values don't rise")
        clock, last = first + count, at + stride * (count - 1)
    if clock != value + 1 or last > step:
        raise ValueError(f"the first steps of clock values don't end at clock {value}, step {step}")


def joined_first_steps(before: Sequence[Run], later: Sequence[Run]) -> tuple[Run, ...]:
    """Return runs and those that follow them; the former are left out where some in between are."""
    if not later:
        return tuple(before)
    follows = bool(before) and before[-1][0] + before[-1][3] == later[0][0]
    return (*(before if follows else ()), *later)
