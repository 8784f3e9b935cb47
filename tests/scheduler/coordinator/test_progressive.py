"""Windows of a stream: each batch's scores once, in the window of its arrival."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.batches import Batch, Status
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import PlanGrown
from scheduler.coordinator.growing_plan import PlanState
from scheduler.coordinator.progressive import ProgressiveWindows
from worker.data.arrived import NewFile
from worker.data.plan import FilePlan
from worker.metrics import bin_of, exact_auc, log_loss_sum, log_losses
from worker.protocol import Evaluation, Finished, SegmentScores, Token

RNG = np.random.default_rng(5)


def batch(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    values: list[str] | None = None,
) -> Batch:
    probabilities = 1 / (1 + np.exp(-logits.astype(float)))
    scores = Evaluation(
        bin_of(logits, 1 << 16),
        labels > 0.5,
        log_loss_sum(logits, labels, weights),
        float((probabilities * (1 if weights is None else weights)).sum()),
        weights,
        segments=(
            None if values is None else by_segment(logits, labels, weights, probabilities, values)
        ),
    )
    result = Finished(Token(0, 0, 0, 0), "done", len(labels), evaluation=scores)
    return Batch(batch_id=0, step=0, lane=0, planned=len(labels), status=Status.DONE, result=result)


def by_segment(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    probabilities: np.ndarray,
    values: list[str],
) -> SegmentScores:
    """Scores by value, but for those of the value `-`, which have no name."""
    names = tuple(dict.fromkeys(value for value in values if value != "-"))
    number = np.array([names.index(v) if v != "-" else len(names) for v in values], np.uint8)
    losses = log_losses(logits, labels, weights)
    probabilities = probabilities * (1 if weights is None else weights)
    sums = [np.bincount(number, each, len(names) + 1) for each in (losses, probabilities)]
    return SegmentScores(names, number, *sums)


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    logits = RNG.normal(size=count).astype(np.float32)
    return logits, (RNG.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def test_a_window_has_the_scores_of_what_arrived_in_it() -> None:
    windows = ProgressiveWindows(10.0)
    parts = [samples(200) for _ in range(3)]
    for (logits, labels), arrived in zip(parts, (1000.0, 1010.0, 1009.9), strict=True):
        windows.resolved(batch(logits, labels), arrived)

    windows.pass_until(1009.9, step=7)
    assert list(windows.results) == []
    windows.pass_until(1010.0, step=8)

    (window,) = windows.results
    logits = np.concatenate([parts[0][0], parts[2][0]])
    labels = np.concatenate([parts[0][1], parts[2][1]])
    rate = labels.mean()
    loss = log_loss_sum(logits, labels) / 400
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert (window.begins, window.seconds, window.step, window.samples) == (1000.0, 10.0, 8, 400)
    assert window.label_rate == pytest.approx(rate)
    assert window.auc == pytest.approx(exact_auc(logits, labels), abs=1.01 * window.auc_error_bound)
    assert window.logloss == pytest.approx(loss)
    assert window.normalized_entropy == pytest.approx(loss / entropy)
    predicted = (1 / (1 + np.exp(-logits.astype(float)))).sum()
    assert window.calibration == pytest.approx(predicted / labels.sum())


def test_a_window_of_one_class_has_no_auc_and_no_entropy() -> None:
    windows = ProgressiveWindows(1.0)
    windows.resolved(batch(np.zeros(3, np.float32), np.zeros(3, np.float32)), 0.5)

    windows.pass_until(math.inf, step=1)

    (window,) = windows.results
    figures = (window.auc, window.normalized_entropy, window.calibration)
    assert all(math.isnan(figure) for figure in figures)
    assert window.logloss == pytest.approx(math.log(2))


def test_nothing_is_summed_where_nobody_wants_it() -> None:
    windows = ProgressiveWindows(None)
    windows.resolved(batch(*samples(3)), 0.5)

    windows.pass_until(math.inf, step=1)

    assert list(windows.results) == []


def test_a_weight_counts_as_so_many_samples() -> None:
    logits, labels = samples(300)
    times = RNG.integers(0, 4, 300)
    weighted, plain = ProgressiveWindows(10.0, weighted=True), ProgressiveWindows(10.0)
    weighted.resolved(batch(logits, labels, times.astype(np.float32)), 1.0)
    plain.resolved(batch(np.repeat(logits, times), np.repeat(labels, times)), 1.0)

    for windows in (weighted, plain):
        windows.pass_until(math.inf, step=1)

    (found,), (expected,) = weighted.results, plain.results
    assert (found.samples, found.weight, expected.weight) == (300, times.sum(), None)
    for name in ("label_rate", "auc", "auc_error_bound", "logloss", "normalized_entropy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    assert found.calibration == pytest.approx(expected.calibration)


def test_a_window_in_which_nothing_weighs_anything_has_no_figures() -> None:
    windows = ProgressiveWindows(1.0, weighted=True)
    windows.resolved(batch(*samples(3), np.zeros(3, np.float32)), 0.5)

    windows.pass_until(math.inf, step=1)

    (window,) = windows.results
    assert (window.samples, window.weight) == (3, 0)
    assert math.isnan(window.auc)
    assert math.isnan(window.logloss)


def test_the_last_windows_are_over_with_the_last_step_though_the_stream_says_no_more(
    scripted: Any,
) -> None:
    """Its feed says that nothing more comes, and again where all is resolved: perhaps too late."""

    class Scored(scripted):  # type: ignore[misc]
        def _end_of(self, token: Token) -> Finished:
            scores = batch(*samples(10)).result.evaluation  # type: ignore[union-attr]
            return Finished(token, "done", 10, pull_step=0, evaluation=scores)

    cutter = BatchCutter(PlanState(), batch_size=10, group_size=3, close_seconds=5.0)
    files = [NewFile(FilePlan(name, 1, (60,), name), at) for name, at in (("a", 1.0), ("b", 12.0))]
    cutter.add(files, {}, now=20.0)
    extension = cutter.cut(20.0, most=99, ends=True)
    coordinator = Coordinator(scripted.spec(plan=None, mode="async", window_seconds=10.0))
    job = Scored(coordinator, seed=1)

    job.handle(PlanGrown(extension, 0.0))
    job.run(lambda: coordinator.trained)

    windows = list(coordinator.windows.results)
    assert [(window.begins, window.samples) for window in windows] == [(0.0, 60), (10.0, 60)]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_segment_has_the_scores_of_its_samples_alone(weighted: bool) -> None:
    windows = ProgressiveWindows(10.0, weighted=weighted, segments=2)
    values = [["b", "a", "a", "c", "-"][i % 5] for i in range(500)]
    parts = [samples(500) for _ in range(2)]
    weights = RNG.exponential(1.0, 500).astype(np.float32) if weighted else None
    for logits, labels in parts:
        windows.resolved(batch(logits, labels, weights, values), 1.0)
    logits, labels = (np.concatenate(each) for each in zip(*parts, strict=True))

    windows.pass_until(math.inf, step=1)

    (window,) = windows.results
    assert [each.value for each in window.segments] == ["b", "a", None]
    assert [each.samples for each in window.segments] == [200, 400, 400]
    for found in window.segments:
        rest = {found.value} if found.value else {"c", "-"}
        its = np.array([value in rest for value in values * 2])
        alone = ProgressiveWindows(10.0, weighted=weighted)
        its_weights = None if weights is None else np.concatenate([weights, weights])[its]
        alone.resolved(batch(logits[its], labels[its], its_weights), 1.0)
        alone.pass_until(math.inf, step=1)
        (expected,) = alone.results
        for name in ("label_rate", "logloss", "normalized_entropy", "calibration", "weight"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
        assert 0 < found.auc_error_bound < 0.002
        assert found.auc == pytest.approx(expected.auc, abs=1.01 * found.auc_error_bound)


def test_segments_are_those_that_came_first_in_every_window() -> None:
    windows = ProgressiveWindows(10.0, segments=2)
    for arrived, values in ((1.0, "ab"), (11.0, "cb"), (21.0, "cc")):
        windows.resolved(batch(*samples(2), None, list(values)), arrived)

    windows.pass_until(math.inf, step=1)

    told = [[(s.value, s.samples) for s in window.segments] for window in windows.results]
    assert told == [[("a", 1), ("b", 1)], [("b", 1), (None, 1)], [(None, 2)]]


def test_a_window_has_the_scores_of_each_task_and_the_first_are_its_own() -> None:
    windows = ProgressiveWindows(10, tasks=("click", "buy"), segments=2)
    values = ["a", "b", "b"] * 10
    rng = np.random.default_rng(8)
    parts = []
    for _ in range(3):
        logits = rng.normal(size=30).astype(np.float32)
        labels = (rng.random(30) < 0.5).astype(np.float32)
        both = batch(logits, labels, None, values)
        alone = batch(logits[:7], labels[:7], None, values[:7])
        scores, other = (each.result.evaluation for each in (both, alone) if each.result)
        assert scores is not None
        assert other is not None
        assert both.result is not None
        both.result.evaluation = replace(scores, others=(other,))
        windows.resolved(both, 12.0)
        parts.append((logits, labels))
    windows.pass_until(math.inf, step=1)

    (window,) = windows.results
    assert [task.name for task in window.tasks] == ["click", "buy"]
    assert [task.samples for task in window.tasks] == [90, 21]
    for task, n in zip(window.tasks, (30, 7), strict=True):
        logits, labels = (np.concatenate([p[i][:n] for p in parts]) for i in (0, 1))
        assert task.auc == pytest.approx(exact_auc(logits, labels), abs=1e-4)
        assert task.logloss == pytest.approx(log_loss_sum(logits, labels) / len(labels))
    assert (window.auc, window.samples) == (window.tasks[0].auc, 90)
    told = [[(each.value, each.samples) for each in task.segments] for task in window.tasks]
    assert told == [[("a", 30), ("b", 60)], [("a", 9), ("b", 12)]]
    assert window.segments == window.tasks[0].segments
