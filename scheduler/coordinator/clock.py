"""The clock of schedules: floor(samples applied / G), the same in every mode.

Global step k only orders records. Eviction, evaluation and learning rates run on this clock, so a
job behaves alike whether a step is a global batch or one local batch.
"""

from dataclasses import dataclass

from runtime.first_steps import FirstSteps, Run, check_first_steps


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
        self.samples = start.samples
        self.value = start.value
        self._first_steps = FirstSteps(start.first_steps, remembered=remembered)
        self._first_steps.forget(now=self.value)

    def advance(self, samples: int, *, next_step: int) -> None:
        """Count the samples that a step applied; `next_step` is the one after it."""
        ticks, self.samples = divmod(self.samples + samples, self._global_batch)
        for _ in range(ticks):
            self.value += 1
            self._first_steps.begin(self.value, next_step)
        if ticks:
            self._first_steps.forget(now=self.value)

    def first_step_at(self, clock: int) -> int:
        """Return the first step that began at `clock` or later; 0 where that is forgotten."""
        return self._first_steps.first_step_at(clock)

    def state(self) -> ClockState:
        """Return what another clock needs to go on from here."""
        runs = self._first_steps.runs
        return ClockState(value=self.value, samples=self.samples, first_steps=runs)
