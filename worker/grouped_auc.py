"""AUC within groups of samples, such as those of a user: how well each group is ranked by itself.

    GAUC = sum_g w_g AUC_g / sum_g w_g

over the groups that have samples of both classes, where w_g is how many samples the group has (its
impressions), or the sum of their weights. A group whose samples are all of one class has no AUC and
is left out, and so are samples without a group.

Source: Zhu et al. 2017, "Optimized Cost per Click in Taobao Display Advertising", and Zhou et al.
2018, "Deep Interest Network for Click-Through Rate Prediction", section 6.2, weighted by
impressions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from worker.data.batch import NO_GROUP

MAX_GROUPED = 1 << 26
"""Samples that are ranked by group in one evaluation: whoever merges them has 13 to 17 bytes of
each, and as much again while they are sorted."""

_Ints = npt.NDArray[np.int64]
_Bins = npt.NDArray[np.int32]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupScores:
    """What groups came to.

    Args:
        gauc: see the module; NaN where no group has both classes.
        groups: that have both.
        samples: of these.
    """

    gauc: float
    groups: int
    samples: int


@dataclass(frozen=True, slots=True)
class GroupedPart:
    """Some samples, in any order.

    Args:
        groups: int64[n]; NO_GROUP: in none.
        bins: int32[n], see `worker.metrics.bin_of`: samples of a group in one bin are ties.
        positive: bool[n].
        weights: float32[n], >= 0; None: all are 1.
    """

    groups: _Ints
    bins: _Bins
    positive: _Bools
    weights: _Floats | None = None


def group_scores(parts: Sequence[GroupedPart]) -> GroupScores:
    """Return the scores of all groups; those of a group may be in several parts.

    Sums are of float64, in the order of the groups' keys and the bins, so the order of samples
    shows in the last digits at most, and only where they have weights.
    """
    if not parts:
        return GroupScores(float("nan"), 0, 0)
    groups = np.concatenate([part.groups for part in parts])
    bins = np.concatenate([part.bins for part in parts])
    positive = np.concatenate([part.positive for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    weight = np.concatenate(weights) if weights else np.empty(0, np.float32)
    order = np.argsort(groups, kind="stable")
    total, weighed, count, samples = _sums(groups, bins, positive, weight, order)
    return GroupScores(total / weighed if weighed else float("nan"), count, samples)


@njit(cache=True, nogil=True)
def _sums(
    groups: _Ints, bins: _Bins, positive: _Bools, weights: _Floats, order: _Ints
) -> tuple[float, float, int, int]:
    """Return sum w AUC, sum w, the groups and their samples; order: those of a group together."""
    total = weighed = 0.0
    count = samples = 0
    start, n = 0, order.size
    while start < n:
        group, end, up = groups[order[start]], start, 0
        while end < n and groups[order[end]] == group:
            up += positive[order[end]]
            end += 1
        if group != NO_GROUP and 0 < up < end - start:
            auc, weight = _auc(bins, positive, weights, order[start:end])
            if weight > 0.0:
                total += weight * auc
                weighed += weight
                count += 1
                samples += end - start
        start = end
    return total, weighed, count, samples


@njit(cache=True, nogil=True)
def _auc(bins: _Bins, positive: _Bools, weights: _Floats, its: _Ints) -> tuple[float, float]:
    """Return the AUC of some samples and their weight; 0 and 0 where a class weighs nothing."""
    order = its[np.argsort(bins[its])]
    below = positives = wins = 0.0
    at, n = 0, order.size
    while at < n:
        tied, up, down = bins[order[at]], 0.0, 0.0
        while at < n and bins[order[at]] == tied:
            weight = np.float64(weights[order[at]]) if weights.size else 1.0
            if positive[order[at]]:
                up += weight
            else:
                down += weight
            at += 1
        wins += up * (below + 0.5 * down)
        positives += up
        below += down
    if positives == 0.0 or below == 0.0:
        return 0.0, 0.0
    return wins / (positives * below), positives + below


def check_grouped(rows: int, tasks: int) -> None:
    """Raise ValueError where so many samples, of so many tasks, are not ranked by group at once."""
    if rows * max(tasks, 1) > MAX_GROUPED:
        times = f" of {tasks} tasks" if tasks > 1 else ""
        raise ValueError(
            f"data.eval_group_by ranks at most {MAX_GROUPED:,} samples by group in an evaluation,"
            f" and there are {rows:,}{times}; name fewer files in data.eval, or leave it out"
        )
