"""Which rows are evicted: those that are old, light, or beyond the quota of their bucket."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import NUM_BUCKETS, bucket_of
from embedding.kernels.selection import nth_lowest
from embedding.spec.eviction import MIN_ROWS_PER_BUCKET
from embedding.spec.table import TableSpec
from embedding.table.precision import read_vector, stored_width
from embedding.table.row_arrays import NUM_TOUCHED, RowArrays
from embedding.table.rows import KEY_BYTES, Rows
from embedding.table.usage import FREQUENCY, USAGE_BYTES, VERSION, usage_at

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

EvictFirst = Literal["least_frequent", "least_recent"]

# Of the index for each row, at most: a line of 64 bytes, which has 2.2 keys when it has grown.
INDEX_BYTES = 29
_WEIGHED_AT_ONCE = 1 << 16


def rows_per_bucket(spec: TableSpec) -> int:
    """Return how many rows a bucket of a table may keep at an eviction; 0: any number.

    Raises:
        ValueError: max_bytes leaves fewer rows than a quota needs to be fair.
    """
    rule = spec.eviction
    quotas = []
    if rule is not None and rule.max_rows is not None:
        quotas.append(rule.max_rows // NUM_BUCKETS)
    if rule is not None and rule.max_bytes is not None:
        row_bytes = 4 * stored_width(spec) + USAGE_BYTES + KEY_BYTES + INDEX_BYTES
        quotas.append(rule.max_bytes // (row_bytes * NUM_BUCKETS))
        if quotas[-1] < MIN_ROWS_PER_BUCKET:
            least = MIN_ROWS_PER_BUCKET * row_bytes * NUM_BUCKETS
            raise ValueError(
                f"max_bytes must be >= {least} in a table of {row_bytes} bytes a row:"
                f" {MIN_ROWS_PER_BUCKET} rows in each of {NUM_BUCKETS} buckets; got"
                f" {rule.max_bytes}"
            )
    return min(quotas, default=0)


def expired(
    rows: Rows, *, dim: int, precision: int, min_version: int, l2_weight_threshold: float
) -> Int64Array:
    """Return the keys, in no order, of rows that are older or lighter than they must be.

    None is older where usage is not tracked.

    Args:
        dim: width of the vector.
        precision: of the vector, see `precision`.
        min_version: rows of a version below it are older.
        l2_weight_threshold: rows are lighter of which half the squared sum of the vector, in
            float64, is below it.
    """
    keys = np.empty(len(rows), np.int64)
    rule = (min_version, l2_weight_threshold)
    if rows.tiered is None or l2_weight_threshold <= 0:
        count = _collect_expired(rows.arrays, dim, precision, rows.track_usage, *rule, keys)
        return keys[:count].copy()
    # Values are in memory and on the disk, so they are weighed in copies.
    count, touched = 0, int(rows.arrays.state[NUM_TOUCHED])
    for start in range(0, touched, _WEIGHED_AT_ONCE):
        part = slice(start, min(start + _WEIGHED_AT_ONCE, touched))
        there = np.flatnonzero(rows.arrays.flags[part]) + start
        state = rows.arrays.state.copy()
        state[NUM_TOUCHED] = there.size
        copy = rows.copy(there, rows.arrays.keys[there])._replace(
            flags=np.ones(there.size, np.uint8), state=state
        )
        count += _collect_expired(copy, dim, precision, rows.track_usage, *rule, keys[count:])
    return keys[:count].copy()


def overfull(rows: Rows, *, rows_per_bucket: int, evict_first: EvictFirst) -> Int64Array:
    """Return the keys, in no order, that must go so that no bucket has more rows than its quota.

    The least frequent or least recently updated go first, among equals the smaller keys.
    """
    keys = np.empty(len(rows), np.int64)
    column = FREQUENCY if evict_first == "least_frequent" else VERSION
    return keys[: _collect_overfull(rows.arrays, rows_per_bucket, column, keys)].copy()


@njit(cache=True, nogil=True)
def _collect_expired(
    rows: RowArrays,
    dim: int,
    precision: int,
    track_usage: bool,
    min_version: int,
    l2_weight_threshold: float,
    keys: Int64Array,
) -> int:
    metadata, values = rows.metadata, rows.values
    vector = np.empty((1, dim), np.float32)
    weigh = l2_weight_threshold > 0
    count = 0
    for row in range(rows.state[NUM_TOUCHED]):
        if rows.flags[row] == 0:
            continue
        gone = track_usage and usage_at(metadata, rows.state, row, VERSION) < min_version
        if not gone and weigh:
            total = 0.0
            read_vector(values, row, precision, vector, 0, dim)
            for c in range(dim):
                total += np.float64(vector[0, c]) * np.float64(vector[0, c])
            gone = 0.5 * total < l2_weight_threshold
        if gone:
            keys[count] = rows.keys[row]
            count += 1
    return count


@njit(cache=True, nogil=True)
def _collect_overfull(rows: RowArrays, quota: int, column: int, keys: Int64Array) -> int:
    touched = rows.state[NUM_TOUCHED]
    sizes = np.zeros(NUM_BUCKETS, np.int64)
    for row in range(touched):
        if rows.flags[row] != 0:
            sizes[bucket_of(rows.keys[row])] += 1
    # The rows of overfull buckets, bucket after bucket; `places` is where each one's next row goes.
    starts = np.zeros(NUM_BUCKETS + 1, np.int64)
    for bucket in range(NUM_BUCKETS):
        starts[bucket + 1] = starts[bucket] + (sizes[bucket] if sizes[bucket] > quota else 0)
    places = starts[:-1].copy()
    members = np.empty(starts[-1], np.int64)
    scores = np.empty(starts[-1], np.int64)
    for row in range(touched):
        if rows.flags[row] != 0:
            bucket = bucket_of(rows.keys[row])
            if sizes[bucket] > quota:
                members[places[bucket]] = rows.keys[row]
                scores[places[bucket]] = usage_at(rows.metadata, rows.state, row, column)
                places[bucket] += 1
    count = 0
    for bucket in range(NUM_BUCKETS):
        if sizes[bucket] > quota:
            part = slice(starts[bucket], starts[bucket + 1])
            count = _lowest(members[part], scores[part], sizes[bucket] - quota, keys, count)
    return count


@njit(cache=True, nogil=True)
def _lowest(
    members: Int64Array, scores: Int64Array, excess: int, keys: Int64Array, count: int
) -> int:
    """Append the `excess` members of the lowest (score, key) to keys[:count]; return the end."""
    limit = nth_lowest(scores.copy(), excess - 1)
    ties = np.empty(members.size, np.int64)
    num_ties = 0
    end = count + excess
    for i in range(members.size):
        if scores[i] < limit:
            keys[count] = members[i]
            count += 1
        elif scores[i] == limit:
            ties[num_ties] = members[i]
            num_ties += 1
    nth_lowest(ties[:num_ties], end - count - 1)  # which puts no larger one before that place
    for i in range(end - count):
        keys[count + i] = ties[i]
    return end
