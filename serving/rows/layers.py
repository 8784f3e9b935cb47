"""One layer of a table's rows as arrays, and the pull from two of them, a base and an overlay.

An index (`embedding.table.index`) gives the number of each key that a layer says something about.
Numbers below that of its vectors are rows. The others are *rowless*: keys without a row of which
something is known all the same, how often they were counted, or that their row is gone.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.table.admission import ALWAYS, BLOOM, PROBABILISTIC
from embedding.table.bloom import bloom_count
from embedding.table.index import BLOCK, WORDS, find_batch
from embedding.table.initial_values import InitialValues, fill_initial
from embedding.table.precision import FLOAT32, read_vectors, round_vector
from serving.rows.quantized import INT8, read_int8

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

REMOVED = -1
"""The count of a key whose row, or counter, a lower layer may have and which is there no more."""


class LayerArrays(NamedTuple):
    """What kernels take of a layer.

    Args:
        entries: int64[lines, 8], the index; no lines where the layer says nothing.
        values: float32[rows, width], the vectors as a table of some precision stores them.
        rowless: int64[rowless keys], their counts, or REMOVED.
        frequency: int64[rows], of a table whose frequencies admit keys of another; else empty.
    """

    entries: Int64Array
    values: Float32Array
    rowless: Int64Array
    frequency: Int64Array


class Rule(NamedTuple):
    """By which a key without a row is admitted, as `embedding.table.admission` has it.

    Args:
        kind: ALWAYS, COUNTER, BLOOM or PROBABILISTIC; a pull of count 0 draws nothing.
        min_count: that a count must reach.
        reached: of BLOOM uint8[4096, counters of a block]: which counters reach it.
        hashes: of the Bloom filter.
    """

    kind: int
    min_count: int
    reached: UInt8Array
    hashes: int


def no_layer(width: int) -> LayerArrays:
    """Return a layer that says nothing of any key."""
    none = np.empty(0, np.int64)
    return LayerArrays(np.empty((0, WORDS), np.int64), np.empty((0, width), np.float32), none, none)


@njit(cache=True, nogil=True)
def _find(base, overlay, keys, below, above, counts):  # type: ignore[no-untyped-def]
    """Write the row of each key in the layer that has it, else -1, and the counts of those without.

    Args:
        below, above: int64[at least n], written: rows of the base and of the overlay.
        counts: int64[at least n], written: 0 or the count, where both are -1.

    Returns:
        how many have no row.
    """
    n = keys.size
    find_batch(base.entries, 0, 0, keys, below)
    if overlay.entries.shape[0] > 0:
        find_batch(overlay.entries, 0, 0, keys, above)
    else:
        above[:n] = -1
    num_above, num_below = overlay.values.shape[0], base.values.shape[0]
    missing = 0
    for i in range(n):
        counts[i] = 0
        if above[i] >= 0:
            below[i] = -1
            if above[i] >= num_above:
                counts[i] = max(overlay.rowless[above[i] - num_above], 0)
                above[i] = -1
                missing += 1
        elif below[i] >= num_below:
            counts[i] = max(base.rowless[below[i] - num_below], 0)
            below[i] = -1
            missing += 1
        elif below[i] < 0:
            missing += 1
    return missing


@njit(cache=True, nogil=True)
def _read(values, rows, kept_as, out):  # type: ignore[no-untyped-def]
    if kept_as == INT8:
        read_int8(values, rows, out)
    else:
        read_vectors(values, rows, kept_as, out)


@njit(cache=True, nogil=True)
def find_layers(
    base: LayerArrays,
    overlay: LayerArrays,
    keys: Int64Array,
    first: Int64Array,
    rows: Int64Array,
    of_layer: Int64Array,
) -> None:
    """Write which row each key has, as a number of its layer's file, and in which layer; -1: none.

    Args:
        first: int64[2], the number of the first row of the base, and of the overlay.
        rows: int64[n], written.
        of_layer: int64[n], written: 0 the base, 1 the overlay.
    """
    below, above = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    counts = np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        _find(base, overlay, keys[start:end], below, above, counts)
        for i in range(end - start):
            of_layer[start + i] = 1 if above[i] >= 0 else 0
            rows[start + i] = -1
            if above[i] >= 0:
                rows[start + i] = first[1] + above[i]
            elif below[i] >= 0:
                rows[start + i] = first[0] + below[i]


@njit(cache=True, nogil=True)
def pull_layers(
    base: LayerArrays,
    overlay: LayerArrays,
    fetched: Float32Array,
    kept_as: int,
    precision: int,
    rule: Rule,
    initial: InitialValues,
    default_value: np.float32,
    keys: Int64Array,
    asked: Int64Array,
    values: Float32Array,
    admitted: UInt8Array,
    has_row: UInt8Array,
) -> None:
    """Write vectors and admitted bits as a pull of count 0 from the table itself does.

    Args:
        fetched: float32[n, width], what the layers have of each key's row, where it is not to be
            read there; no rows: it is.
        kept_as: how the layers keep vectors: a kind of `precision`, or INT8.
        precision: to which an initial value is rounded.
        asked: int64[n], the frequency of each key in another table, by which that admits it; empty:
            the layers' own counts.
        has_row: uint8[n], written.
    """
    dim = values.shape[1]
    below, above = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    counts, places = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    narrow = np.empty((1, dim), np.float32)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        size = end - start
        missing = _find(base, overlay, keys[start:end], below, above, counts)
        if fetched.shape[0] > 0:
            for i in range(size):
                places[i] = i if below[i] >= 0 or above[i] >= 0 else -1
            _read(fetched[start:end], places[:size], kept_as, values[start:end])
        else:
            _read(base.values, below[:size], kept_as, values[start:end])
            if overlay.values.shape[0] > 0:
                _read(overlay.values, above[:size], kept_as, values[start:end])
        admitted[start:end] = 1
        has_row[start:end] = 1
        if missing == 0:
            continue
        for out in range(start, end):
            i = out - start
            if below[i] >= 0 or above[i] >= 0:
                continue
            has_row[out] = 0
            count = asked[out] if asked.size > 0 else counts[i]
            passes = rule.kind == ALWAYS
            if rule.kind == BLOOM:
                passes = bloom_count(rule.reached, rule.hashes, keys[out]) > 0
            elif rule.kind != ALWAYS and rule.kind != PROBABILISTIC:
                passes = count >= rule.min_count
            if not passes:
                admitted[out] = 0
                for c in range(dim):
                    values[out, c] = default_value
                continue
            fill_initial(values, out, dim, initial, keys[out])
            if precision != FLOAT32:
                round_vector(values, out, precision, dim, narrow)


@njit(cache=True, nogil=True)
def frequencies(
    base: LayerArrays,
    overlay: LayerArrays,
    rule: Rule,
    keys: Int64Array,
    out: Int64Array,
) -> None:
    """Write how often each key was seen, as far as a rule asks: of rowless keys of a Bloom filter
    it is the rule's `min_count` where they reach it, else 0."""
    below, above = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    counts = np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        _find(base, overlay, keys[start:end], below, above, counts)
        for i in range(end - start):
            if above[i] >= 0:
                out[start + i] = overlay.frequency[above[i]]
            elif below[i] >= 0:
                out[start + i] = base.frequency[below[i]]
            elif rule.kind == BLOOM:
                reaches = bloom_count(rule.reached, rule.hashes, keys[start + i]) > 0
                out[start + i] = rule.min_count if reaches else 0
            else:
                out[start + i] = counts[i]
