"""Vectors of a sample that are not pooled: as many as it has keys, in their order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.models.protocol import FloatArray


@dataclass(frozen=True, slots=True)
class Padded:
    """The sequences of one lookup, of a batch, filled up to one length.

    Args:
        vectors: float32[n, L, dim], C-contiguous; zeros behind the length of a sample.
        lengths: int64[n], from 0 to L.
    """

    vectors: FloatArray
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WithSequences:
    """What a model takes in place of the pooled vectors alone, or their gradients.

    Args:
        pooled: float32[n, W], of the lookups that are pooled.
        sequences: of the others, in their order.
    """

    pooled: FloatArray
    sequences: tuple[Padded, ...]
