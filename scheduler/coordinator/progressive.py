"""How well each window of a stream was predicted before it was trained.

Every batch is scored as it is computed for its training, by the rows that were pulled for it: its
own samples have changed none of them yet. A window is a stretch of arrival times.
"""

import math
from dataclasses import dataclass

import numpy as np

from runtime.tail import Tail
from scheduler.coordinator.batches import Batch
from scheduler.coordinator.growing_plan import Extension
from worker.metrics import StreamingAuc
from worker.protocol import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult:
    """What a window came to.

    Args:
        begins: of the window, seconds since 1970; samples that arrived from then on are in it.
        seconds: how long it is.
        step: that came next when it was over.
        samples: that were trained.
        label_rate: share of the positives among them.
        auc, auc_error_bound: NaN where all labels are of one class.
        logloss: mean.
        normalized_entropy: logloss over that of always predicting the window's label rate; below 1
            the model knows something (He et al. 2014).
        calibration: sum of the predicted probabilities over the number of positives.
        weight: of the samples in sum, where they have weights: then all figures but `samples` are
            weighted.
    """

    begins: float
    seconds: float
    step: int
    samples: int
    label_rate: float
    auc: float
    auc_error_bound: float
    logloss: float
    normalized_entropy: float
    calibration: float
    weight: float | None = None


class _Window:
    def __init__(self, *, weighted: bool) -> None:
        self.auc = StreamingAuc(weighted=weighted)
        self.samples = 0
        self.log_loss = self.probability = 0.0
        self._weighted = weighted

    def add(self, scores: Evaluation) -> None:
        counts = self.auc.counts
        np.add.at(
            counts,
            (scores.positive.view(np.int8), scores.bins),
            1 if scores.weights is None else scores.weights,
        )
        self.samples += scores.bins.size
        self.log_loss += scores.log_loss_sum
        self.probability += scores.probability_sum

    def result(self, *, begins: float, seconds: float, step: int) -> WindowResult:
        negatives, positives = (float(count) for count in self.auc.counts.sum(axis=1))
        total = negatives + positives
        rate = positives / total if total else math.nan
        logloss = self.log_loss / total if total else math.nan
        entropy = 0.0
        if 0 < rate < 1:
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        return WindowResult(
            begins=begins,
            seconds=seconds,
            step=step,
            samples=self.samples,
            label_rate=rate,
            auc=self.auc.value(),
            auc_error_bound=self.auc.error_bound(),
            logloss=logloss,
            normalized_entropy=logloss / entropy if entropy else math.nan,
            calibration=self.probability / positives if positives else math.nan,
            weight=total if self._weighted else None,
        )


class ProgressiveWindows:
    """Sums the scores of batches, each once, when its step is ordered.

    Where a job goes back to a checkpoint, the windows that are trained again are told again; the
    one in which the checkpoint lies then has only what came after it.

    Args:
        seconds: how long a window is; None: nothing is summed.
        weighted: whether samples have weights.

    Attributes:
        results: of the windows that are over.
        said_until: before when nothing more is to arrive, as it was said last.
    """

    def __init__(self, seconds: float | None, *, weighted: bool = False) -> None:
        self.results: Tail[WindowResult] = Tail()
        self.said_until = 0.0
        self._seconds = seconds
        self._weighted = weighted
        self._open: dict[int, _Window] = {}

    def grows(self, extension: Extension | None, at: float) -> None:
        """The plan does, at a time; what it ends with may be trained before that is said again."""
        self.said_until = math.inf if extension is not None and extension.ends else at

    def resolved(self, batch: Batch, arrived: float) -> None:
        """A batch is in a step; `arrived` is when its last row was found."""
        scores = None if batch.result is None else batch.result.evaluation
        if self._seconds is not None and scores is not None and scores.bins.size:
            number = int(arrived // self._seconds)
            if number not in self._open:
                self._open[number] = _Window(weighted=self._weighted)
            self._open[number].add(scores)

    def pass_until(self, arrived: float, *, step: int) -> None:
        """Nothing that arrived before is to come any more: windows that end before are over.

        Args:
            step: that comes next.
        """
        if not self._open or self._seconds is None:
            return
        for number in sorted(self._open):
            if (number + 1) * self._seconds > arrived:
                return
            window = self._open.pop(number)
            self.results.append(
                window.result(begins=number * self._seconds, seconds=self._seconds, step=step)
            )
