"""Scores of batches added up, in any order, to those of all samples."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from worker.grouped_auc import GroupedPart, group_scores
from worker.metrics import StreamingAuc
from worker.protocol import Evaluation, TaskScores


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Scores of one task, over the samples that count in it; weighted where samples have weights.

    Args:
        name: of the task; empty where there is one.
        auc, auc_error_bound: NaN where all labels are of one class.
        logloss: mean.
        gauc: AUC within groups, see `worker.grouped_auc`; None where samples have none.
        gauc_groups, gauc_samples: groups of both classes, and their samples.
    """

    name: str
    auc: float
    auc_error_bound: float
    logloss: float
    samples: int
    gauc: float | None = None
    gauc_groups: int = 0
    gauc_samples: int = 0

    def figures(self) -> dict[str, Any]:
        """Return the scores by name, as results and metrics have them."""
        named = asdict(self)
        del named["name"]
        return named if self.gauc is not None else {k: named[k] for k in named if "gauc" not in k}


class _TaskSums:
    """Sums over the samples of one task."""

    def __init__(self, *, weighted: bool) -> None:
        self._auc = StreamingAuc(weighted=weighted)
        self._samples = 0
        self._log_loss: dict[int, float] = {}
        self._grouped: dict[int, GroupedPart] = {}

    def add(self, batch_id: int, scores: TaskScores) -> None:
        counts = np.zeros_like(self._auc.counts)
        for label in (False, True):
            its = scores.positive == label
            weights = None if scores.weights is None else scores.weights[its]
            counts[int(label)] = np.bincount(scores.bins[its], weights, minlength=counts.shape[1])
        self._auc.add_counts(counts)
        self._samples += scores.bins.size
        self._log_loss[batch_id] = scores.log_loss_sum
        if scores.groups is not None:
            self._grouped[batch_id] = GroupedPart(
                scores.groups, scores.bins, scores.positive, scores.weights
            )

    def result(self, name: str, *, grouped: bool) -> TaskResult:
        """Return the scores; log losses are summed in the order of the batches."""
        total = sum(self._log_loss[batch_id] for batch_id in sorted(self._log_loss))
        groups = None
        if grouped:
            groups = group_scores([self._grouped[batch_id] for batch_id in sorted(self._grouped)])
        return TaskResult(
            name=name,
            auc=self._auc.value(),
            auc_error_bound=self._auc.error_bound(),
            logloss=total / self._auc.total if self._auc.total else float("nan"),
            samples=self._samples,
            gauc=None if groups is None else groups.gauc,
            gauc_groups=0 if groups is None else groups.groups,
            gauc_samples=0 if groups is None else groups.samples,
        )


class ScoreSums:
    """Sums of the scores of batches, task by task.

    Args:
        tasks: names of several; empty: there is one.
        weighted: whether samples have weights.
        grouped: whether they are ranked by group, too.
    """

    def __init__(self, tasks: tuple[str, ...] = (), *, weighted: bool, grouped: bool) -> None:
        self._names = tasks or ("",)
        self._grouped = grouped
        self._tasks = [_TaskSums(weighted=weighted) for _ in self._names]

    def add(self, batch_id: int, scores: Evaluation) -> None:
        """Add a batch's scores; each batch once."""
        for sums, its in zip(self._tasks, (scores, *scores.others), strict=True):
            sums.add(batch_id, its)

    def results(self) -> tuple[TaskResult, ...]:
        """Return what each task came to; floats are summed in the order of the batches."""
        each = zip(self._tasks, self._names, strict=True)
        return tuple(sums.result(name, grouped=self._grouped) for sums, name in each)
