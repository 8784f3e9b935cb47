"""How well each window of a stream was predicted before it was trained.

Every batch is scored as it is computed for its training, by the rows that were pulled for it: its
own samples have changed none of them yet. A window is a stretch of arrival times.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.tail import Tail
from scheduler.coordinator.batches import Batch
from scheduler.coordinator.growing_plan import Extension
from scheduler.coordinator.spec import CoordinatorSpec
from worker.metrics import StreamingAuc
from worker.protocol import SegmentScores, TaskScores

# There may be many segments, so they have fewer bins: each is 16 of those of the whole window.
_FOLD = 16


# What is shown of a window beside its number of samples.
WINDOW_SCORES = ("auc", "logloss", "normalized_entropy", "calibration", "label_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What some samples came to.

    Args:
        samples: that were trained.
        label_rate: share of the positives among them.
        auc, auc_error_bound: NaN where all labels are of one class.
        logloss: mean.
        normalized_entropy: logloss over that of always predicting the label rate; below 1 the
            model knows something (He et al. 2014).
        calibration: sum of the predicted probabilities over the number of positives.
        weight: of the samples in sum, where they have weights: then all figures but `samples` are
            weighted.
    """

    samples: int
    label_rate: float
    auc: float
    auc_error_bound: float
    logloss: float
    normalized_entropy: float
    calibration: float
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult(Scores):
    """What the samples of one segment came to.

    Args:
        value: of the segment's column; None: all values that are not told apart.
    """

    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWindow(Scores):
    """What the samples came to that count in one of several tasks.

    Args:
        segments: of these samples, in the same order in all windows and tasks, the others last.
    """

    name: str
    segments: tuple[SegmentResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult(Scores):
    """What a window came to.

    Args:
        begins: of the window, seconds since 1970; samples that arrived from then on are in it.
        seconds: how long it is.
        step: that came next when it was over.
        segments: of its samples, in the order in which they were first seen, the others last.
        tasks: of a job with several; the scores and segments beside are those of the first then.
    """

    begins: float
    seconds: float
    step: int
    segments: tuple[SegmentResult, ...] = ()
    tasks: tuple[TaskWindow, ...] = ()


class _Window:
    """Sums over the samples of a window, of one task.

    Args:
        segments: how many are told apart; those of none of them are one more. 0: none is.
    """

    def __init__(self, *, weighted: bool, segments: int) -> None:
        self._weighted = weighted
        self._auc = StreamingAuc(weighted=weighted)
        self._samples = 0
        self._log_loss = self._probability = 0.0
        parts = segments + 1 if segments else 0
        counts = self._auc.counts
        self._counts_of = np.zeros((parts, 2, counts.shape[1] // _FOLD), counts.dtype)
        self._samples_of = np.zeros(parts, np.int64)
        self._log_loss_of, self._probability_of = np.zeros(parts), np.zeros(parts)

    def add(self, scores: TaskScores) -> None:
        labels, weights = scores.positive.view(np.int8), scores.weights
        np.add.at(self._auc.counts, (labels, scores.bins), 1 if weights is None else weights)
        self._samples += scores.bins.size
        self._log_loss += scores.log_loss_sum
        self._probability += scores.probability_sum

    def add_segments(
        self, scores: TaskScores, segments: SegmentScores, parts: npt.NDArray[np.int64]
    ) -> None:
        """Add a batch's scores by segment.

        Args:
            parts: int64[names + 1], where those of each segment of the batch are added, and those
                of none.
        """
        labels, weights = scores.positive.view(np.int8), scores.weights
        part = parts[segments.of]
        place = (part, labels, scores.bins // _FOLD)
        np.add.at(self._counts_of, place, 1 if weights is None else weights)
        np.add.at(self._samples_of, part, 1)
        np.add.at(self._log_loss_of, parts, segments.log_loss_sums)
        np.add.at(self._probability_of, parts, segments.probability_sums)

    def figures(self) -> dict[str, Any]:
        """Return the fields of `Scores` of all samples."""
        return self._figures(self._auc, self._samples, self._log_loss, self._probability)

    def segments(self, values: list[str]) -> tuple[SegmentResult, ...]:
        """Return what segments came to that have samples; values: by where they were added."""
        found = []
        for part in np.flatnonzero(self._samples_of).tolist():
            auc = StreamingAuc(self._counts_of.shape[2], weighted=self._weighted)
            auc.add_counts(self._counts_of[part])
            log_loss, probability = self._log_loss_of[part], self._probability_of[part]
            samples = int(self._samples_of[part])
            figures = self._figures(auc, samples, float(log_loss), float(probability))
            value = values[part] if part < len(values) else None
            found.append(SegmentResult(value=value, **figures))
        return tuple(found)

    def _figures(
        self, auc: StreamingAuc, samples: int, log_loss: float, probability: float
    ) -> dict[str, Any]:
        negatives, positives = (float(count) for count in auc.counts.sum(axis=1))
        total = negatives + positives
        rate = positives / total if total else math.nan
        logloss = log_loss / total if total else math.nan
        entropy = 0.0
        if 0 < rate < 1:
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        return {
            "samples": samples,
            "label_rate": rate,
            "auc": auc.value(),
            "auc_error_bound": auc.error_bound(),
            "logloss": logloss,
            "normalized_entropy": logloss / entropy if entropy else math.nan,
            "calibration": probability / positives if positives else math.nan,
            "weight": total if self._weighted else None,
        }


class ProgressiveWindows:
    """Sums the scores of batches, each once, when its step is ordered.

    Where a job goes back to a checkpoint, the windows that are trained again are told again; the
    one in which the checkpoint lies then has only what came after it.

    Args:
        seconds: how long a window is; None: nothing is summed.
        weighted: whether samples have weights.
        segments: so many values are told apart, those that come first; 0: none is.
        tasks: names of several that are scored, each by itself; empty: there is one.

    Attributes:
        results: of the windows that are over.
        said_until: before when nothing more is to arrive, as it was said last.
    """

    def __init__(
        self,
        seconds: float | None,
        *,
        weighted: bool = False,
        segments: int = 0,
        tasks: tuple[str, ...] = (),
    ) -> None:
        self.results: Tail[WindowResult] = Tail()
        self.said_until = 0.0
        self._seconds = seconds
        self._weighted = weighted
        self._segments = segments
        self._tasks = tasks
        self._part_of: dict[str, int] = {}
        self._open: dict[int, list[_Window]] = {}  # of each task

    def grows(self, extension: Extension | None, at: float) -> None:
        """The plan does, at a time; what it ends with may be trained before that is said again."""
        self.said_until = math.inf if extension is not None and extension.ends else at

    def resolved(self, batch: Batch, arrived: float) -> None:
        """A batch is in a step; `arrived` is when its last row was found."""
        scores = None if batch.result is None else batch.result.evaluation
        if self._seconds is None or scores is None:
            return
        each = (scores, *scores.others)
        if not any(task.bins.size for task in each):
            return
        number = int(arrived // self._seconds)
        if number not in self._open:
            self._open[number] = self._new_window()
        for window, task in zip(self._open[number], each, strict=True):
            window.add(task)
            if self._segments and task.segments is not None:
                parts = [self._part(name) for name in task.segments.names]
                places = np.array([*parts, self._segments], np.int64)
                window.add_segments(task, task.segments, places)

    def _new_window(self) -> list[_Window]:
        count = max(1, len(self._tasks))
        return [_Window(weighted=self._weighted, segments=self._segments) for _ in range(count)]

    def _part(self, value: str) -> int:
        """Return where a segment's samples are added; the last place is that of all others."""
        if value not in self._part_of and len(self._part_of) < self._segments:
            self._part_of[value] = len(self._part_of)
        return self._part_of.get(value, self._segments)

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
            windows = self._open.pop(number)
            first, values = windows[0], list(self._part_of)
            tasks = zip(self._tasks, windows, strict=False)  # none where there is one
            self.results.append(
                WindowResult(
                    begins=number * self._seconds,
                    seconds=self._seconds,
                    step=step,
                    **first.figures(),
                    segments=first.segments(values),
                    tasks=tuple(
                        TaskWindow(name=name, segments=its.segments(values), **its.figures())
                        for name, its in tasks
                    ),
                )
            )


def windows_of(spec: CoordinatorSpec) -> ProgressiveWindows:
    """Return the windows of a job."""
    return ProgressiveWindows(
        spec.window_seconds,
        weighted=spec.weighted,
        segments=spec.segments,
        tasks=spec.tasks,
    )
