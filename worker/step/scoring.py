"""From a batch's logits to its scores, as sums and counts that a coordinator merges."""

import numpy as np
import numpy.typing as npt

from worker.metrics import bin_of, log_loss_sum, log_losses
from worker.protocol import Evaluation, SegmentScores
from worker.step.computing import Float32s
from worker.step.preparing import Prepared

AUC_BINS = 1 << 16


def scores_of(logits: Float32s, prepared: Prepared) -> Evaluation:
    """Return a batch's scores.

    Args:
        logits: float32[n], as the batch was predicted.
        prepared: its labels, weights and segments.

    Raises:
        ValueError: a logit is NaN.
    """
    weights = prepared.weights
    with np.errstate(over="ignore"):
        probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    if weights is not None:
        probabilities *= weights
    return Evaluation(
        bin_of(logits, AUC_BINS),
        prepared.labels > 0.5,
        log_loss_sum(logits, prepared.labels, weights),
        float(probabilities.sum()),
        weights,
        _by_segment(logits, probabilities, prepared),
    )


def _by_segment(
    logits: Float32s, probabilities: npt.NDArray[np.float64], prepared: Prepared
) -> SegmentScores | None:
    """Sum a batch's scores by segment.

    Args:
        probabilities: float64[n], of the samples, each times its weight.
    """
    if prepared.segments is None:
        return None
    segments = prepared.segments.in_use()
    count = len(segments.names) + 1
    number = np.minimum(segments.of, count - 1)
    losses = log_losses(logits, prepared.labels, prepared.weights)
    return SegmentScores(
        segments.names, number, _sums(number, losses, count), _sums(number, probabilities, count)
    )


def _sums(
    number: npt.NDArray[np.uint8], values: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    return np.bincount(number, values, count).astype(np.float64)
