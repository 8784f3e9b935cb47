"""The loss of several tasks: the sum of theirs, each over the samples that count in it."""

from collections.abc import Sequence

import numpy as np

from worker.models.loss import loss_and_gradient
from worker.models.protocol import FloatArray
from worker.spec import Loss


def task_factors(
    labels: FloatArray, task_weights: Sequence[float], weights: FloatArray | None
) -> FloatArray:
    """Return what each sample's loss of each task is multiplied by, float32[n, tasks].

    It is 0 where the label is NaN, else the task's weight times the sample's.
    """
    factors: FloatArray = ~np.isnan(labels) * np.array(task_weights, np.float32)
    return factors if weights is None else factors * weights[:, np.newaxis]


def tasks_loss_and_gradient(
    loss: Loss,
    logits: FloatArray,
    labels: FloatArray,
    factors: FloatArray,
    grad: FloatArray,
) -> float:
    """Return the sum over tasks of the sums of the samples' losses; write its gradient.

    A sample of factor 0 adds nothing to a task, unless its logit is NaN.

    Args:
        loss: of each task.
        logits: float32[n, tasks].
        labels: float32[n, tasks], NaN where a sample does not count in a task.
        factors: float32[n, tasks], see `task_factors`.
        grad: float32[n, tasks], written.
    """
    total = 0.0
    known = np.nan_to_num(labels, nan=0.0)
    for task in range(logits.shape[1]):
        own = [np.ascontiguousarray(each[:, task]) for each in (logits, known, factors)]
        of_task = np.empty(len(logits), np.float32)
        total += loss_and_gradient(loss, own[0], own[1], own[2], of_task)
        grad[:, task] = of_task
    return total
