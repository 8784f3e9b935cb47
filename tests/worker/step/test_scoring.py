"""Scores of a batch: sums that are those of its samples, and of each segment's alone."""

import numpy as np
import pytest

from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from worker.data.batch import Batch
from worker.data.segments import OTHER, Segments
from worker.metrics import log_loss_sum
from worker.step.preparing import Prepared, Preparer
from worker.step.scoring import scores_of

RNG = np.random.default_rng(2)
N = 60
LOGITS = RNG.normal(0, 2, N).astype(np.float32)
LABELS = (RNG.random(N) < 0.4).astype(np.float32)


def prepared(weights: np.ndarray | None = None, segments: Segments | None = None) -> Prepared:
    prepare = Preparer(
        tables=[], sparse=[], lookups=[], deduplicator=Deduplicator([], Routing.even(1))
    )
    return prepare(Batch(LABELS, np.zeros((N, 0), np.float32), (), weights, segments))


@pytest.mark.parametrize("weights", [None, RNG.exponential(1, N).astype(np.float32)], ids=str)
def test_each_segment_has_the_sums_of_its_samples(weights: np.ndarray | None) -> None:
    of = np.array([[2, 0, OTHER][i % 3] for i in range(N)], np.uint8)

    scores = scores_of(LOGITS, prepared(weights, Segments(("x", "unused", "y"), of)))

    found = scores.segments
    assert found is not None
    assert found.names == ("x", "y")
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(float))) * (1 if weights is None else weights)
    for number, code in enumerate((0, 2, OTHER)):
        its = of == code
        np.testing.assert_array_equal(found.of == number, its)
        loss = log_loss_sum(LOGITS[its], LABELS[its], None if weights is None else weights[its])
        assert found.log_loss_sums[number] == pytest.approx(loss)
        assert found.probability_sums[number] == pytest.approx(probabilities[its].sum())
    assert found.log_loss_sums.sum() == pytest.approx(scores.log_loss_sum)
    assert scores.probability_sum == pytest.approx(probabilities.sum())


def test_samples_without_segments_are_scored_together_alone() -> None:
    assert scores_of(LOGITS, prepared()).segments is None


@pytest.mark.parametrize("weights", [None, RNG.exponential(1, N).astype(np.float32)], ids=str)
def test_each_task_has_the_scores_of_the_samples_that_count_in_it(
    weights: np.ndarray | None,
) -> None:
    counts = RNG.random((N, 2)) < [0.9, 0.3]
    labels = np.where(counts, (RNG.random((N, 2)) < 0.4), np.nan).astype(np.float32)
    logits = RNG.normal(0, 2, (N, 2)).astype(np.float32)
    segments = Segments(("x", "y"), np.array([0, 1, OTHER] * 20, np.uint8))
    groups = np.arange(N) % 7
    batch = Batch(labels, np.zeros((N, 0), np.float32), (), weights, segments, groups)

    scores = scores_of(logits, batch)

    (second,) = scores.others
    for task, found in enumerate((scores, second)):
        its = counts[:, task]
        alone = Batch(
            labels[its, task],
            np.zeros((its.sum(), 0), np.float32),
            (),
            None if weights is None else weights[its],
            segments.rows(np.flatnonzero(its)),
            groups[its],
        )
        expected = scores_of(logits[its, task], alone)
        for name in ("bins", "positive", "log_loss_sum", "probability_sum", "weights", "groups"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert expected.segments is not None
        assert found.segments is not None
        for name in ("of", "log_loss_sums", "probability_sums"):
            ours, theirs = getattr(found.segments, name), getattr(expected.segments, name)
            np.testing.assert_array_equal(ours, theirs)
