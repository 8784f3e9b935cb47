"""The clock of schedules: floor(samples applied / G), the same in every mode.

Global step k only orders records. Eviction, evaluation and learning rates run on this clock, so a
job behaves alike whether a step is a global batch or one local batch.
"""


class ScheduleClock:
    """Maps steps to clock values and back.

    Args:
        global_batch: G, samples of one tick.
    """

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._samples = 0
        self.value = 0
        # first_step[c]: the first step that began at clock c or later. Grows with the clock only.
        self._first_step = [0]

    def advance(self, samples: int, *, next_step: int) -> None:
        """Count the samples that a step applied; `next_step` is the one after it."""
        self._samples += samples
        self.value = self._samples // self._global_batch
        while len(self._first_step) <= self.value:
            self._first_step.append(next_step)

    def first_step_at(self, clock: int) -> int:
        """Return the first step that began at `clock` or later; 0 for a clock before the start."""
        return 0 if clock <= 0 else self._first_step[clock]
