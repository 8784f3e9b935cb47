"""From a batch's logits to its scores, as sums and counts that a coordinator merges."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from worker.data.batch import Batch
from worker.data.segments import Segments
from worker.metrics import bin_of, log_loss_sum, log_losses
from worker.protocol import Evaluation, SegmentScores, TaskScores
from worker.step.computing import Float32s
from worker.step.preparing import Prepared

AUC_BINS = 1 << 16

# What has labels, weights, segments and groups.
Scored = Prepared | Batch


def scores_of(logits: Float32s, prepared: Scored) -> Evaluation:
    """Return a batch's scores, of each task those of the samples that count in it.

    Args:
        logits: float32[n], or of several tasks float32[n, tasks], as the batch was predicted.
        prepared: its labels, weights, segments and groups.

    Raises:
        ValueError: a logit is NaN.
    """
    if logits.ndim == 1:
        return _evaluation(logits, prepared)
    first, *others = (
        _of_task(logits[:, task], prepared.labels[:, task], prepared)
        for task in range(logits.shape[1])
    )
    return _evaluation(*first, others=tuple(_task_scores(*each) for each in others))


def _of_task(logits: Float32s, labels: Float32s, prepared: Scored) -> tuple[Float32s, Scored]:
    """Return a task's logits and labels, with what else is known of the samples that count."""
    counts = np.flatnonzero(~np.isnan(labels))
    weights, segments, groups = prepared.weights, prepared.segments, prepared.groups
    its = replace(
        prepared,
        labels=labels[counts],
        weights=None if weights is None else weights[counts],
        segments=None if segments is None else segments.rows(counts),
        groups=None if groups is None else groups[counts],
    )
    return logits[counts], its


def _evaluation(
    logits: Float32s, prepared: Scored, *, others: tuple[TaskScores, ...] = ()
) -> Evaluation:
    its = _task_scores(logits, prepared)
    return Evaluation(
        its.bins,
        its.positive,
        its.log_loss_sum,
        its.probability_sum,
        its.weights,
        its.groups,
        its.segments,
        others,
    )


def _task_scores(logits: Float32s, prepared: Scored) -> TaskScores:
    weights, segments = prepared.weights, prepared.segments
    return TaskScores(
        bin_of(logits, AUC_BINS),
        prepared.labels > 0.5,
        log_loss_sum(logits, prepared.labels, weights),
        float(_probabilities(logits, weights).sum()),
        weights,
        prepared.groups,
        None if segments is None else _by_segment(logits, prepared, segments),
    )


def _probabilities(logits: Float32s, weights: Float32s | None) -> npt.NDArray[np.float64]:
    """Return the probability of each sample, float64[n], times its weight."""
    with np.errstate(over="ignore"):
        probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    if weights is not None:
        probabilities *= weights
    return probabilities


def _by_segment(logits: Float32s, prepared: Scored, segments: Segments) -> SegmentScores:
    """Sum a batch's scores by segment."""
    segments = segments.in_use()
    count = len(segments.names) + 1
    number = np.minimum(segments.of, count - 1)
    losses = log_losses(logits, prepared.labels, prepared.weights)
    probabilities = _probabilities(logits, prepared.weights)
    return SegmentScores(
        segments.names, number, _sums(number, losses, count), _sums(number, probabilities, count)
    )


def _sums(
    number: npt.NDArray[np.uint8], values: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    return np.bincount(number, values, count).astype(np.float64)
