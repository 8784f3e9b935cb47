"""AUC within groups, held against that of each group computed by itself."""

import math

import numpy as np
import pytest

from worker.data.batch import NO_GROUP
from worker.grouped_auc import GroupedPart, check_grouped, group_scores
from worker.metrics import bin_of, exact_auc

RNG = np.random.default_rng(4)


def parts_of(*arrays: np.ndarray, cuts: list[int]) -> list[GroupedPart]:
    pieces = zip(*(np.split(array, cuts) for array in arrays), strict=True)
    return [GroupedPart(*piece) for piece in pieces]


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_mean_of_the_groups_aucs_by_their_samples(weighted: bool) -> None:
    n = 4000
    groups = RNG.integers(-300, 300, n)  # some of one class, some with few samples
    logits = RNG.normal(0, 2, n).round(1).astype(np.float32)  # with ties
    positive = RNG.random(n) < 1 / (1 + np.exp(-logits))
    weights = RNG.integers(0, 4, n).astype(np.float32)
    arrays = [groups, bin_of(logits, 1 << 16), positive, *([weights] if weighted else [])]

    found = group_scores(parts_of(*arrays, cuts=[700, 700, 2500]))

    total = weight = 0.0
    of_groups, samples = 0, 0
    for group in np.unique(groups):
        its = groups == group
        own = weights[its].astype(float) if weighted else np.ones(its.sum())
        auc = exact_auc(logits[its], positive[its], own)
        if not math.isnan(auc):
            total += own.sum() * auc
            weight += own.sum()
            of_groups += 1
            samples += int(its.sum())
    assert (found.groups, found.samples) == (of_groups, samples)
    assert found.gauc == pytest.approx(total / weight, abs=1e-12)
    assert 0 < of_groups < len(np.unique(groups))


def test_groups_of_one_class_and_samples_without_a_group_are_left_out() -> None:
    groups = np.array([1, 1, 2, 2, NO_GROUP, NO_GROUP, 3, 3, 3])
    bins = np.array([5, 9, 5, 9, 9, 5, 7, 7, 1], np.int32)
    positive = np.array([0, 1, 1, 1, 0, 1, 0, 1, 0], np.bool_)

    found = group_scores([GroupedPart(groups, bins, positive)])

    assert found.gauc == pytest.approx((2 * 1.0 + 3 * 0.75) / 5)
    assert (found.groups, found.samples) == (2, 5)


def test_without_a_group_of_both_classes_there_is_none() -> None:
    one = GroupedPart(np.array([1, 2]), np.array([1, 2], np.int32), np.array([True, False]))

    for parts in ([one], []):
        found = group_scores(parts)
        assert math.isnan(found.gauc)
        assert (found.groups, found.samples) == (0, 0)


def test_more_samples_than_are_merged_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.grouped_auc.MAX_GROUPED", 100)

    check_grouped(100, 0)
    check_grouped(50, 2)
    with pytest.raises(ValueError, match=r"at most 100 samples .* there are 51 of 2 tasks"):
        check_grouped(51, 2)
