"""Dense parameters a step ahead, for a batch that is to be in a later step than the shard is at.

In gba a worker that has ended its batch goes on at once, though its step is not complete: what it
reads lacks a step by the time that its gradient counts. Near the edge of what is stable that is too
much: a direction in which a step goes more than the whole way to the optimum is stable where every
step sees the last one, and is not where it sees the one before (docs/modes.md). But much of the
step that is missing is here already, in the buffer: its mean gradient is the best guess of the
whole step's. So dense parameters are read as the update with this mean would leave them. To first
order the gradients of workers that read so many different guesses add up to what they would be at
the step itself, as the guesses are right on average.

Nothing is changed by it: steps are made of records alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ps.messages.pull_push import ANY_STEP, Contribution, Pull
from ps.messages.records import Record
from ps.shard.dense import DenseBlocks


def looks_ahead(pull: Pull, step: int) -> bool:
    """Return whether what a pull reads at this step counts in a later one."""
    return pull.at_step == ANY_STEP and pull.for_step > step


def dense_ahead(
    dense: DenseBlocks, last: Record | None, held: Sequence[Contribution], optimizer: int
) -> npt.NDArray[np.float32] | None:
    """Return the parameters expected of the next step, float32[size]; None: there is no telling.

    Args:
        last: the newest record, whose learning rate and clipping the next one is taken to have.
        held: the contributions that wait for a record.
        optimizer: which of the record's scalars are those of dense parameters.
    """
    samples = sum(contribution.samples for contribution in held)
    if last is None or last.totals.mode != "gba" or not samples:
        return None
    return dense.after(
        held,
        scale=np.float32(last.dense_factor / samples),
        scalars=np.array(last.scalars[optimizer], np.float64),
    )
