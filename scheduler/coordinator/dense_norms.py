"""Global-norm clipping: records wait, in order, for the norm of their dense gradient.

A norm is measured by the shards, block by block; what it makes of a step is decided here and put
into the record, so that every shard and every replay scales alike.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ps.messages.records import Record
from scheduler.coordinator.events import Command, FailJob, MeasureDenseNorm, SendRecords


class DenseNorms:
    """The records that are ordered and not sent yet.

    Args:
        limit: most of the norm of a step's dense gradient; None: records are sent at once.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        # By step, in order; the factor of a step is known once it was measured.
        self._held: dict[int, Record] = {}
        self._factors: dict[int, float] = {}

    @property
    def awaited(self) -> list[int]:
        """The steps whose norm is being measured."""
        return [step for step in self._held if step not in self._factors]

    @property
    def idle(self) -> bool:
        """Whether every record was sent."""
        return not self._held

    def order(self, records: Sequence[Record]) -> list[Command]:
        """Take further records; return what has to be measured, and those that can be sent."""
        if self._limit is None:
            return [SendRecords(tuple(records))] if records else []
        commands: list[Command] = []
        for record in records:
            self._held[record.step] = record
            changes = record.divisor > 0 and any(entry.weight > 0 for entry in record.entries)
            if changes:
                commands.append(MeasureDenseNorm(record.step, record.entries, record.divisor))
            else:
                self._factors[record.step] = 1.0
        return commands + self._send_known()

    def measured(self, step: int, parts: Sequence[npt.NDArray[np.float64]]) -> list[Command]:
        """Take the sums of squares of a step's blocks, in their order, one array a shard."""
        if self._limit is None or step not in self.awaited:
            return []
        norm = norm_of_blocks(parts)
        if not math.isfinite(norm):
            text = (
                f"the dense gradient of global step {step} is not finite (norm {norm}), though"
                " every contribution is: training diverges. Use a smaller learning rate"
            )
            return [FailJob(text)]
        self._factors[step] = 1.0 if norm <= self._limit else self._limit / norm
        return self._send_known()

    def _send_known(self) -> list[Command]:
        """Send what is known up to the first step that is not: shards apply in order."""
        ready = []
        for step in list(self._held):
            if step not in self._factors:
                break
            ready.append(replace(self._held.pop(step), dense_factor=self._factors.pop(step)))
        return [SendRecords(tuple(ready))] if ready else []


def norm_of_blocks(parts: Sequence[npt.NDArray[np.float64]]) -> float:
    """Return the square root of the sum of all blocks, added one by one whatever the shards."""
    total = 0.0
    # No `sum`: of floats it adds otherwise since Python 3.12.
    for part in parts:
        for square in part.tolist():
            total += square
    return math.sqrt(total)
