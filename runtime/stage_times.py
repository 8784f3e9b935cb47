"""How long a process spent in each stage of its work, always measured: sums of nanoseconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Sums since the start, by stage. A measurement costs about two microseconds.

    Threads need no lock where each stage is added to by one thread only.

    Args:
        stages: their names.

    Example:
        times = StageTimes("read", "wait")
        with times.measure("read"):
            read()
        times.seconds()  # {"read": 0.7, "wait": 0.0}
    """

    def __init__(self, *stages: str) -> None:
        self._sums = dict.fromkeys(stages, 0)

    def add(self, stage: str, nanoseconds: int) -> None:
        """Add to a stage, which must be one of those named at the start."""
        self._sums[stage] += nanoseconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes, also where it raises."""
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter_ns() - began)

    def seconds(self) -> dict[str, float]:
        """Return the sums in seconds."""
        return {stage: nanoseconds / 1e9 for stage, nanoseconds in self._sums.items()}
