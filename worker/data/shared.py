"""Samples that have columns in common: those of one user, say, beside those of many items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from worker.data.batch import Bags, Batch
from worker.data.columns import concatenate, repeated


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """Runs of samples, each with some columns that all samples of the run have in common.

    Args:
        batch: the samples; bags of shared features are those of the runs, one for each run.
        group: int64[n], the run of each sample: 0, then the same or one more than the one before.
        sparse: for each sparse feature, whether it is shared.
        dense: whether all dense features are alike within a run.
    """

    batch: Batch
    group: npt.NDArray[np.int64]
    sparse: tuple[bool, ...]
    dense: bool

    @property
    def num_samples(self) -> int:
        return self.batch.num_samples

    @property
    def num_runs(self) -> int:
        return int(self.group[-1]) + 1 if self.group.size else 0

    def expanded(self) -> Batch:
        """Return the same samples, each with all its columns."""
        bags = tuple(
            repeated(each, self.group) if shared else each
            for each, shared in zip(self.batch.sparse, self.sparse, strict=True)
        )
        return replace(self.batch, sparse=bags)


def joined(parts: Sequence[SharedBatch]) -> SharedBatch:
    """Join batches that share the same features, at least one."""
    first = parts[0]
    assert all((part.sparse, part.dense) == (first.sparse, first.dense) for part in parts)
    if len(parts) == 1:
        return first
    groups, runs = [], 0
    for part in parts:
        groups.append(part.group + runs)
        runs += part.num_runs
    batch = concatenate([part.batch for part in parts])
    return SharedBatch(batch, np.concatenate(groups), first.sparse, first.dense)


def of_one_run(context: Sequence[Bags | None], batch: Batch, *, dense: bool) -> SharedBatch:
    """Return samples that all have some bags in common.

    Args:
        context: for each sparse feature the bag of all samples, as that of one, or None.
        batch: the samples; bags that `context` has are left out of account.
        dense: whether all dense features are the same.
    """
    bags = tuple(
        own if shared is None else shared for shared, own in zip(context, batch.sparse, strict=True)
    )
    group = np.zeros(batch.num_samples, np.int64)
    sparse = tuple(each is not None for each in context)
    return SharedBatch(replace(batch, sparse=bags), group, sparse, dense)
