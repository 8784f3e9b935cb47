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


def merge(
    contributions: Sequence[Contribution],
    weights: Sequence[float],
    accepted: Sequence[npt.NDArray[np.uint8] | None],
    dims: Sequence[int],
    *,
    mean_of_contributors: bool = False,
) -> list[Merged]:
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
    if len(contributions) == 1 and weights[0] == 1.0 and accepted[0] is None:
        merged = _single(contributions[0], dims)
        if mean_of_contributors:
            scale = np.float32(1.0 / max(1, contributions[0].samples))
            for part in merged:
                part.gradients = part.gradients * scale
        return merged
    return _sum(contributions, weights, accepted, dims, mean_of_contributors)


def _sum(
    contributions: Sequence[Contribution],
    weights: Sequence[float],
    accepted: Sequence[npt.NDArray[np.uint8] | None],
    dims: Sequence[int],
    mean_of_contributors: bool,
) -> list[Merged]:
    """Any contributions, key by key."""
    sizes = np.array([c.table_sizes for c in contributions], np.int64).reshape(-1, len(dims))
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
    dims_array = np.array(dims, np.int64)
    first_gradient = _gradient_starts(sizes, admitted, dims_array)

    capacity = sizes.sum(axis=0)
    out_keys = np.empty(keys.size, np.int64)
    out_counts = np.zeros(keys.size, np.int64)
    out_gradients = np.zeros(int((capacity * dims_array).sum()), np.float32)
    out_has = np.zeros(keys.size, np.uint8)
    found = np.zeros(len(dims), np.int64)
    largest = int(capacity.max(initial=0))
    slots = np.zeros(1 << max(4, (2 * largest).bit_length()), np.int64)
    samples = out_samples = None
    if mean_of_contributors:
        samples = np.array([c.samples for c in contributions], np.int64)
        out_samples = np.zeros(keys.size, np.int64)
    _merge(
        sizes, dims_array, keys, counts, admitted, accept, gradients, first_gradient,
        np.array(weights, np.float32), samples, slots,
        out_keys, out_counts, out_gradients, out_has, out_samples, found,
    )  # fmt: skip

    merged = []
    start = gradient_start = 0
    for n, size, dim in zip(found, capacity, dims, strict=True):
        part = slice(start, start + n)
        sums = out_gradients[gradient_start : gradient_start + n * dim].reshape(n, dim)
        if out_samples is not None:
            _divide(sums, out_samples[part])
        merged.append(Merged(out_keys[part], out_counts[part], sums, out_has[part]))
        start += size
        gradient_start += size * dim
    return merged


def _single(contribution: Contribution, dims: Sequence[int]) -> list[Merged]:
    """One contribution of weight 1: nothing to sum, only rows to line up with their keys."""
    merged = []
    counts = contribution.counts.astype(np.int64)
    start = gradient_start = 0
    for size, dim in zip(contribution.table_sizes, dims, strict=True):
        part = slice(start, start + size)
        has = contribution.admitted[part]
        num_gradients = int(np.count_nonzero(has))
        gradient_stop = gradient_start + num_gradients * dim
        gradients = contribution.gradients[gradient_start:gradient_stop].reshape(-1, dim)
        if num_gradients == size:
            merged.append(Merged(contribution.keys[part], counts[part], gradients, None))
        else:
            spread = np.zeros((size, dim), np.float32)
            spread[has != 0] = gradients
            merged.append(Merged(contribution.keys[part], counts[part], spread, has))
        start += size
        gradient_start = gradient_stop
    return merged


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
