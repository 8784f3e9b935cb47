"""Sum the contributions of a step: keys of all contributions to one gradient each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64
from ps.messages.pull_push import Contribution


@dataclass(slots=True)
class Merged:
    """One table's part of a step.

    Args:
        keys: int64[n], distinct, in the order of their first appearance.
        counts: int64[n], occurrences over the contributions.
        gradients: float32[n, dim], sums over the contributions, left to right; or means, where
            these were asked for.
        has_gradient: uint8[n], or None where every key has one.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    gradients: npt.NDArray[np.float32]
    has_gradient: npt.NDArray[np.uint8] | None


@dataclass(slots=True)
class MergedStep:
    """All tables' parts of a step, table after table, each with room for more keys than it has.

    Args:
        keys, counts: int64[n], as of `Merged`.
        gradients: float32[sum of n x dim].
        has_gradient: uint8[n], or None where every key has one.
        starts: int64[tables + 1], where the keys of each table begin.
        sizes: int64[tables], how many it has; what follows up to the next table means nothing.
        gradient_starts: int64[tables + 1], where its gradients begin.
        dims: int64[tables].
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    gradients: npt.NDArray[np.float32]
    has_gradient: npt.NDArray[np.uint8] | None
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    gradient_starts: npt.NDArray[np.int64]
    dims: npt.NDArray[np.int64]

    def of(self, table: int) -> Merged:
        """Return one table's part; views."""
        start, dim = self.starts[table], self.dims[table]
        part = slice(start, start + self.sizes[table])
        first = self.gradient_starts[table]
        rows = self.gradients[first : first + self.sizes[table] * dim].reshape(-1, dim)
        has = None if self.has_gradient is None else self.has_gradient[part]
        return Merged(self.keys[part], self.counts[part], rows, has)


def merge(
    contributions: Sequence[Contribution],
    weights: Sequence[float],
    accepted: Sequence[npt.NDArray[np.uint8] | None],
    dims: Sequence[int],
    *,
    mean_of_contributors: bool = False,
) -> MergedStep:
    """Sum contributions table by table, each sum taken in the order of the contributions.

    Args:
        contributions: of one step, in the order of its record.
        weights: what each one's gradients are multiplied by; counts are not weighted.
        accepted: for each contribution uint8[keys], 0 where a key is left out (its row was
            evicted after the pull), or None where none is.
        dims: embedding dimension of each table.
        mean_of_contributors: whether the sum of each key is multiplied by 1 / n in float32, where
            n is the samples of the contributions that have the key. They count whole, whatever
            their weight, and where the key was not admitted, too.
    """
    dims_array = np.array(dims, np.int64)
    if len(contributions) == 1 and weights[0] == 1.0 and accepted[0] is None:
        merged = _single(contributions[0], dims_array)
        if mean_of_contributors:
            scale = np.float32(1.0 / max(1, contributions[0].samples))
            merged.gradients = merged.gradients * scale
        return merged
    return _sum(contributions, weights, accepted, dims_array, mean_of_contributors)


def _sum(
    contributions: Sequence[Contribution],
    weights: Sequence[float],
    accepted: Sequence[npt.NDArray[np.uint8] | None],
    dims: npt.NDArray[np.int64],
    mean_of_contributors: bool,
) -> MergedStep:
    """Any contributions, key by key."""
    sizes = np.array([c.table_sizes for c in contributions], np.int64).reshape(-1, dims.size)
    keys = np.concatenate([c.keys for c in contributions])
    counts = np.concatenate([c.counts for c in contributions])
    admitted = np.concatenate([c.admitted for c in contributions])
    gradients = np.concatenate([c.gradients for c in contributions])
    accept = np.concatenate(
        [
            np.ones(c.keys.size, np.uint8) if mask is None else mask
            for c, mask in zip(contributions, accepted, strict=True)
        ]
    )
    first_gradient = _gradient_starts(sizes, admitted, dims)

    capacity = sizes.sum(axis=0)
    merged = MergedStep(
        keys=np.empty(keys.size, np.int64),
        counts=np.zeros(keys.size, np.int64),
        gradients=np.zeros(int((capacity * dims).sum()), np.float32),
        has_gradient=np.zeros(keys.size, np.uint8),
        starts=_starts(capacity),
        sizes=np.zeros(dims.size, np.int64),
        gradient_starts=_starts(capacity * dims),
        dims=dims,
    )
    largest = int(capacity.max(initial=0))
    slots = np.zeros(1 << max(4, (2 * largest).bit_length()), np.int64)
    samples = out_samples = None
    if mean_of_contributors:
        samples = np.array([c.samples for c in contributions], np.int64)
        out_samples = np.zeros(keys.size, np.int64)
    _merge(
        sizes, dims, keys, counts, admitted, accept, gradients, first_gradient,
        np.array(weights, np.float32), samples, slots,
        merged.keys, merged.counts, merged.gradients, merged.has_gradient, out_samples,
        merged.sizes,
    )  # fmt: skip

    if out_samples is not None:
        for t in range(dims.size):
            start = merged.starts[t]
            _divide(merged.of(t).gradients, out_samples[start : start + merged.sizes[t]])
    return merged


def _single(contribution: Contribution, dims: npt.NDArray[np.int64]) -> MergedStep:
    """One contribution of weight 1: nothing to sum, only rows to line up with their keys."""
    sizes = np.array(contribution.table_sizes, np.int64)
    gradient_starts = _starts(sizes * dims)
    gradients, has = contribution.gradients, None
    if not contribution.admitted.all():
        has = contribution.admitted
        gradients = np.zeros(gradient_starts[-1], np.float32)
        _line_up(sizes, dims, has, contribution.gradients, gradients)
    return MergedStep(
        keys=contribution.keys,
        counts=contribution.counts.astype(np.int64),
        gradients=gradients,
        has_gradient=has,
        starts=_starts(sizes),
        sizes=sizes,
        gradient_starts=gradient_starts,
        dims=dims,
    )


def _starts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


@njit(cache=True, nogil=True)
def _line_up(sizes, dims, admitted, gradients, out):  # type: ignore[no-untyped-def]
    """Copy the gradient of each admitted key to where its row is among those of all keys."""
    key = source = target = np.int64(0)
    for t in range(sizes.size):
        for _ in range(sizes[t]):
            if admitted[key]:
                for c in range(dims[t]):
                    out[target + c] = gradients[source + c]
                source += dims[t]
            target += dims[t]
            key += 1


@njit(cache=True, nogil=True)
def _gradient_starts(sizes, admitted, dims):  # type: ignore[no-untyped-def]
    """Return int64[contributions, tables]: where each one's gradient rows of a table start."""
    starts = np.empty(sizes.shape, np.int64)
    key = np.int64(0)
    position = np.int64(0)
    for c in range(sizes.shape[0]):
        for t in range(sizes.shape[1]):
            starts[c, t] = position
            for _ in range(sizes[c, t]):
                if admitted[key]:
                    position += dims[t]
                key += 1
    return starts


@njit(cache=True, nogil=True)
def _merge(  # type: ignore[no-untyped-def]
    sizes, dims, keys, counts, admitted, accept, gradients, first_gradient,
    weights, samples, slots,
    out_keys, out_counts, out_gradients, out_has, out_samples, found,
):  # fmt: skip
    """Find each key's place in a scratch table and add to it; contribution by contribution.

    samples, out_samples: int64 by contribution and by place, or None each: that is compiled apart.

    slots: int64[power of two], zero; holds place + 1 of a key in `out_keys`. Places only grow, so
    what an earlier table left is at most `out_start` and counts as empty.
    """
    num_contributions, num_tables = sizes.shape
    mask = np.uint64(slots.size - 1)
    key_start = np.empty(num_contributions, np.int64)
    position = np.int64(0)
    for c in range(num_contributions):
        key_start[c] = position
        position += sizes[c].sum()
    out_start = np.int64(0)
    gradient_base = np.int64(0)
    for t in range(num_tables):
        dim = dims[t]
        unique = np.int64(0)
        capacity = np.int64(0)
        for c in range(num_contributions):
            weight = weights[c]
            source = first_gradient[c, t]
            first = key_start[c]
            for i in range(first, first + sizes[c, t]):
                if accept[i]:
                    key = keys[i]
                    slot = np.int64(mix64(np.uint64(key)) & mask)
                    while slots[slot] > out_start and out_keys[slots[slot] - 1] != key:
                        slot = np.int64(np.uint64(slot + 1) & mask)
                    if slots[slot] <= out_start:
                        out_keys[out_start + unique] = key
                        unique += 1
                        slots[slot] = out_start + unique
                    place = slots[slot] - 1 - out_start
                    out_counts[out_start + place] += np.int64(counts[i])
                    if samples is not None:
                        out_samples[out_start + place] += samples[c]
                    if admitted[i]:
                        target = gradient_base + place * dim
                        # A sum starts with its first term and not with 0, as 0 + -0.0 is not -0.0:
                        # so that one contribution alone comes out as it is.
                        if out_has[out_start + place]:
                            for j in range(dim):
                                out_gradients[target + j] += weight * gradients[source + j]
                        else:
                            out_has[out_start + place] = 1
                            for j in range(dim):
                                out_gradients[target + j] = weight * gradients[source + j]
                if admitted[i]:
                    source += dim
            key_start[c] = first + sizes[c, t]
            capacity += sizes[c, t]
        found[t] = unique
        out_start += capacity
        gradient_base += capacity * dim


@njit(cache=True, nogil=True)
def _divide(sums, samples):  # type: ignore[no-untyped-def]
    """sums[i] *= 1 / samples[i], float32[n, dim] and int64[n]."""
    for i in range(sums.shape[0]):
        scale = np.float32(1.0 / max(1, samples[i]))
        for c in range(sums.shape[1]):
            sums[i, c] *= scale


@njit(cache=True, nogil=True)
def add_weighted(total, values, weight):  # type: ignore[no-untyped-def]
    """total += weight * values, float32[n] each, element by element."""
    for i in range(total.size):
        total[i] += weight * values[i]
