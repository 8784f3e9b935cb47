"""Quality of predicted probabilities: AUC in bounded memory, logloss, and an exact AUC to check by.

Predictions are logits throughout: both metrics need no probability, and a logit loses nothing
where a probability rounds to 0 or 1.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

_Floats = npt.NDArray[np.float32]
_Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]

# Logit at which the bins have become four times as wide as at 0.
_BIN_SCALE = 4.0


class StreamingAuc:
    """AUC of logits that need not be kept: they are counted in bins, by class.

    Counts are integers, so the state after a set of samples is the same for any order and any
    split over workers; states merge with `add_counts`. Samples in one bin count as ties, one half
    each, which is wrong by at most `error_bound()`.

    Samples may weigh something: then bins hold sums of weights, and every pair of a positive and a
    negative sample counts as the product of theirs. Weights are float32 and sums float64, so sums
    are exact, and the same in any order, as long as none is 2^53 times the last bit of the smallest
    weight: a million, say, where no weight is below 1/1000. Beyond it the order shows in the last
    digits.

    Args:
        num_bins: an even number of bins, see `bin_of`; the state takes 16 bytes for each.
        weighted: whether samples have weights.
    """

    def __init__(self, num_bins: int = 1 << 16, *, weighted: bool = False) -> None:
        _check_bins(num_bins)
        shape = (2, num_bins)
        self._counts: _Counts = np.zeros(shape) if weighted else np.zeros(shape, np.int64)

    @property
    def counts(self) -> _Counts:
        """The state, [2, num_bins]: of samples with label 0, with label 1. A view, not a copy.

        int64, how many there are; where they have weights float64, the sums of these.
        """
        return self._counts

    @property
    def total(self) -> float:
        """How many samples were counted; where they have weights, the sum of these."""
        return float(self._counts.sum())

    def add(self, logits: _Floats, labels: _Floats, weights: _Floats | None = None) -> None:
        """Count samples.

        Args:
            logits: float32[n]; infinities are legal.
            labels: float32[n] of 0 and 1.
            weights: float32[n], finite and >= 0, where samples have weights.

        Raises:
            ValueError: lengths differ, a logit is NaN, a label is neither 0 nor 1; nothing has
                been counted then.
        """
        logits, labels = _checked(logits, labels)
        bins = bin_of(logits, self._counts.shape[1])
        if weights is None:
            _count(bins, labels, self._counts)
        else:
            _add_weights(bins, labels, weights, self._counts)

    def add_counts(self, counts: _Counts) -> None:
        """Merge the `counts` of another one with as many bins, [2, num_bins]."""
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
        return "no sample was scored that weighs anything"
    return "an infinite logit has the wrong sign" if math.isinf(log_loss) else None


def auc_text(auc: float | None, error_bound: float | None, digits: int = 4) -> str:
    """Return an AUC for people: with its bound, rounded up, where that shows in these digits."""
    if auc is None or math.isnan(auc):
        return "none"
    unit = 10.0**-digits
    if error_bound is None or not error_bound >= unit / 2:
        return f"{auc:.{digits}f}"
    return f"{auc:.{digits}f} +- {math.ceil(error_bound / unit) * unit:.{digits}f}"


def log_loss_sum(logits: _Floats, labels: _Floats, weights: _Floats | None = None) -> float:
    """Return the sum of -log P(label), added up in float64 in sample order.

    A sample adds max(z, 0) - z * y + log1p(exp(-|z|)), which overflows for no logit, times its
    weight. Divide by the number of samples, or the sum of their weights, for the mean.

    Args:
        logits: float32[n]; an infinite logit adds 0 where it is right and infinity where not.
        labels: float32[n] of 0 and 1.
        weights: float32[n], finite and >= 0; one of 0 adds nothing. None: all are 1.

    Raises:
        ValueError: as `StreamingAuc.add`.
    """
    if weights is None:
        return float(_log_loss_sum(*_checked(logits, labels)))
    return float(_weighted_log_loss_sum(*_checked(logits, labels), weights))


def log_losses(
    logits: _Floats, labels: _Floats, weights: _Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return what each sample adds to `log_loss_sum`, float64[n], to the last bits."""
    wrong = np.where(labels == 1.0, -logits, logits).astype(np.float64)
    losses = np.maximum(wrong, 0.0) + np.log1p(np.exp(-np.abs(wrong)))
    if weights is None:
        return losses
    return np.multiply(losses, weights, out=np.zeros_like(losses), where=weights > 0)


def exact_auc(
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating | np.integer],
    weights: npt.NDArray[np.floating] | None = None,
) -> float:
    """Return the AUC by ranks, ties counted one half; NaN where a class is missing.

    Sorts: for tests and small data.

    Args:
        scores: floating[n], without NaN; any monotone function of the prediction.
        labels: [n] of 0 and 1.
        weights: floating[n], >= 0; None: all are 1.
    """
    _, inverse = np.unique(scores, return_inverse=True)
    distinct = int(inverse.max(initial=-1)) + 1
    positive = np.asarray(labels) > 0
    counts = np.stack(
        [
            np.bincount(
                inverse[mask],
                None if weights is None else weights[mask],
                minlength=distinct,
            )
            for mask in (~positive, positive)
        ]
    )
    return _auc(counts)


def _auc(counts: _Counts) -> float:
    """AUC of [2, bins], bins ascending: every positive above a negative, half within one."""
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
def _add_weights(
    bins: npt.NDArray[np.int32], labels: _Floats, weights: _Floats, sums: npt.NDArray[np.float64]
) -> None:
    for i in range(bins.size):
        sums[np.int64(labels[i]), bins[i]] += np.float64(weights[i])


@njit(cache=True, nogil=True)
def _weighted_log_loss_sum(logits: _Floats, labels: _Floats, weights: _Floats) -> float:
    total = 0.0
    for i in range(logits.size):
        if weights[i] > 0.0:
            z = np.float64(logits[i])
            wrong = -z if labels[i] == 1.0 else z
            loss = max(wrong, 0.0) + np.log1p(np.exp(-abs(z)))
            total += np.float64(weights[i]) * loss
    return total


@njit(cache=True, nogil=True)
def _log_loss_sum(logits: _Floats, labels: _Floats) -> float:
    total = 0.0
    for i in range(logits.size):
        z = np.float64(logits[i])
        wrong = -z if labels[i] == 1.0 else z  # max(z,0) - z*y for y in {0,1}, without inf - inf
        total += max(wrong, 0.0) + np.log1p(np.exp(-abs(z)))
    return total
