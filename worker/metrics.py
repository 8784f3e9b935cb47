"""Quality of predicted probabilities: AUC in bounded memory, logloss, and an exact AUC to check by.

Predictions are logits throughout: both metrics need no probability, and a logit loses nothing
where a probability rounds to 0 or 1.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

_Floats = npt.NDArray[np.float32]

# Logit at which the bins have become four times as wide as at 0.
_BIN_SCALE = 4.0


class StreamingAuc:
    """AUC of logits that need not be kept: they are counted in bins, by class.

    Counts are integers, so the state after a set of samples is the same for any order and any
    split over workers; states merge with `add_counts`. Samples in one bin count as ties, one half
    each, which is wrong by at most `error_bound()`.

    Args:
        num_bins: an even number of bins, see `bin_of`; the state takes 16 bytes for each.
    """

    def __init__(self, num_bins: int = 1 << 16) -> None:
        _check_bins(num_bins)
        self._counts = np.zeros((2, num_bins), np.int64)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The state, int64[2, num_bins]: samples with label 0, with label 1. A view, not a copy."""
        return self._counts

    @property
    def num_samples(self) -> int:
        return int(self._counts.sum())

    def add(self, logits: _Floats, labels: _Floats) -> None:
        """Count samples.

        Args:
            logits: float32[n]; infinities are legal.
            labels: float32[n] of 0 and 1.

        Raises:
            ValueError: lengths differ, a logit is NaN, a label is neither 0 nor 1; nothing has
                been counted then.
        """
        logits, labels = _checked(logits, labels)
        _count(bin_of(logits, self._counts.shape[1]), labels, self._counts)

    def add_counts(self, counts: npt.NDArray[np.int64]) -> None:
        """Merge the `counts` of another one with as many bins, int64[2, num_bins]."""
        if counts.shape != self._counts.shape:
            raise ValueError(f"counts must have shape {self._counts.shape}, got {counts.shape}")
        self._counts += counts

    def value(self) -> float:
        """Return the AUC; NaN while a class is missing."""
        return _auc(self._counts)

    def error_bound(self) -> float:
        """Return the largest difference to the exact AUC that the counts allow.

        It is half the fraction of the pairs of a positive and a negative sample that share a bin.
        NaN while a class is missing.
        """
        negatives, positives = self._counts.astype(np.float64)
        pairs = float(negatives.sum() * positives.sum())
        return float((negatives * positives).sum()) / (2 * pairs) if pairs else float("nan")


def bin_of(logits: _Floats, num_bins: int) -> npt.NDArray[np.int32]:
    """Return the bin of each logit; a larger logit never has a smaller bin.

    The map is odd about 0 and covers all logits: half the bins lie within |z| < 4, 1/4 within
    4 to 12, and the infinities have the outer ones. It takes only operations that IEEE 754 rounds
    correctly, so that every machine has the same bins.

    Args:
        logits: float32[n], without NaN.
        num_bins: even, in [2, 2^31).
    """
    _check_bins(num_bins)
    out = np.empty(len(logits), np.int32)
    _bins(np.ascontiguousarray(logits, np.float32), num_bins // 2, out)
    return out


def why_no_auc(auc: float, samples: int) -> str | None:
    """Say why there is no AUC, None where there is one; samples: that were scored."""
    if samples == 0:
        return "no sample was scored"
    return "all labels are of one class" if math.isnan(auc) else None


def why_no_log_loss(log_loss: float) -> str | None:
    """Say why there is no finite logloss, None where there is one."""
    if math.isnan(log_loss):
        return "no sample was scored"
    return "an infinite logit has the wrong sign" if math.isinf(log_loss) else None


def auc_text(auc: float | None, error_bound: float | None, digits: int = 4) -> str:
    """Return an AUC for people: with its bound, rounded up, where that shows in these digits."""
    if auc is None or math.isnan(auc):
        return "none"
    unit = 10.0**-digits
    if error_bound is None or not error_bound >= unit / 2:
        return f"{auc:.{digits}f}"
    return f"{auc:.{digits}f} +- {math.ceil(error_bound / unit) * unit:.{digits}f}"


def log_loss_sum(logits: _Floats, labels: _Floats) -> float:
    """Return the sum of -log P(label), added up in float64 in sample order.

    A sample adds max(z, 0) - z * y + log1p(exp(-|z|)), which overflows for no logit. Divide by
    the number of samples for the mean.

    Args:
        logits: float32[n]; an infinite logit adds 0 where it is right and infinity where not.
        labels: float32[n] of 0 and 1.

    Raises:
        ValueError: as `StreamingAuc.add`.
    """
    return float(_log_loss_sum(*_checked(logits, labels)))


def exact_auc(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.floating | np.integer]
) -> float:
    """Return the AUC by ranks, ties counted one half; NaN where a class is missing.

    Sorts: for tests and small data.

    Args:
        scores: floating[n], without NaN; any monotone function of the prediction.
        labels: [n] of 0 and 1.
    """
    _, inverse = np.unique(scores, return_inverse=True)
    distinct = int(inverse.max(initial=-1)) + 1
    positive = np.asarray(labels) > 0
    counts = np.stack(
        [
            np.bincount(inverse[~positive], minlength=distinct),
            np.bincount(inverse[positive], minlength=distinct),
        ]
    )
    return _auc(counts)


def _auc(counts: npt.NDArray[np.int64]) -> float:
    """AUC of int64[2, bins], bins ascending: every positive above a negative, half within one."""
    negatives, positives = counts
    below = np.cumsum(negatives) - negatives
    pairs = float(negatives.sum()) * float(positives.sum())
    wins = (positives.astype(np.float64) * (below + 0.5 * negatives)).sum()
    return float(wins) / pairs if pairs else float("nan")


def _check_bins(num_bins: int) -> None:
    if not (2 <= num_bins < 1 << 31 and num_bins % 2 == 0):
        raise ValueError(f"num_bins must be even and in [2, 2^31), got {num_bins}")


def _checked(logits: _Floats, labels: _Floats) -> tuple[_Floats, _Floats]:
    if logits.ndim != 1 or logits.shape != labels.shape:
        raise ValueError(
            f"logits and labels must be vectors of one length, got {logits.shape} and "
            f"{labels.shape}"
        )
    logits = np.ascontiguousarray(logits, np.float32)
    labels = np.ascontiguousarray(labels, np.float32)
    position = int(_first_bad(logits, labels))
    if position >= 0:
        if np.isnan(logits[position]):
            raise ValueError(
                f"the model gives NaN for sample {position}: its parameters have diverged. Train it"
                " again with lower learning rates, or with limits to its gradients (clip_value,"
                " clip_norm, model.clip_global_norm)"
            )
        raise ValueError(f"sample {position} has label {labels[position]}; a label must be 0 or 1")
    return logits, labels


@njit(cache=True, nogil=True)
def _first_bad(logits: _Floats, labels: _Floats) -> int:
    for i in range(logits.size):
        if np.isnan(logits[i]) or not (labels[i] == 0.0 or labels[i] == 1.0):
            return i
    return -1


@njit(cache=True, nogil=True)
def _bins(logits: _Floats, half: int, out: npt.NDArray[np.int32]) -> None:
    for i in range(logits.size):
        z = np.float64(logits[i])
        # In (0, half]: the share of the half that lies beyond |z|. Each operation is monotone.
        beyond = int(np.ceil(half / (1.0 + abs(z) / _BIN_SCALE)))
        if beyond < 1:  # an infinite logit
            beyond = 1
        out[i] = 2 * half - beyond if z >= 0.0 else beyond - 1


@njit(cache=True, nogil=True)
def _count(bins: npt.NDArray[np.int32], labels: _Floats, counts: npt.NDArray[np.int64]) -> None:
    for i in range(bins.size):
        counts[np.int64(labels[i]), bins[i]] += 1


@njit(cache=True, nogil=True)
def _log_loss_sum(logits: _Floats, labels: _Floats) -> float:
    total = 0.0
    for i in range(logits.size):
        z = np.float64(logits[i])
        wrong = -z if labels[i] == 1.0 else z  # max(z,0) - z*y for y in {0,1}, without inf - inf
        total += max(wrong, 0.0) + np.log1p(np.exp(-abs(z)))
    return total
