"""A local batch as arrays: what a reader gives and what training and prediction take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.data.segments import Segments

NO_GROUP = -(2**63)
"""The group of samples that have none, as their column is null."""


@dataclass(frozen=True, slots=True)
class Bags:
    """The keys of one sparse feature, for a run of samples.

    Args:
        keys: int64[nnz], sample after sample.
        offsets: int64[n + 1], the bag of sample i is keys[offsets[i]:offsets[i + 1]]; None where
            every sample has exactly one key.
        weights: float32[nnz], or None where all are 1.
    """

    keys: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as columns.

    Args:
        labels: float32[n] of 0 and 1; of several tasks float32[n, tasks], NaN where a sample does
            not count in one; empty where the samples have no label.
        dense: float32[n, number of dense features], C-contiguous, transformed.
        sparse: one `Bags` for each sparse feature, in the order of the job.
        weights: float32[n], how much each sample counts, finite and >= 0; None: all count 1.
        segments: of the samples, where they are scored apart.
        groups: int64[n], of the samples, where they are ranked apart; NO_GROUP: in none.
    """

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    sparse: tuple[Bags, ...]
    weights: npt.NDArray[np.float32] | None = None
    segments: Segments | None = None
    groups: npt.NDArray[np.int64] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.dense)


@dataclass(frozen=True, slots=True)
class SingleKeys:
    """Samples with one key for each sparse feature, and no label: a `Batch` without its objects.

    Args:
        dense: float32[n, number of dense features], C-contiguous, transformed.
        keys: int64[sparse features, n], C-contiguous, in the order of the job.
    """

    dense: npt.NDArray[np.float32]
    keys: npt.NDArray[np.int64]

    @property
    def num_samples(self) -> int:
        return len(self.dense)

    def batch(self) -> Batch:
        """Return the same samples with a bag for each feature, which are views."""
        return Batch(np.empty(0, np.float32), self.dense, tuple(Bags(keys) for keys in self.keys))


def joined_single_keys(parts: Sequence[SingleKeys]) -> SingleKeys:
    """Join samples, at least one batch of them; a single one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return SingleKeys(
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.keys for part in parts], axis=1),
    )
