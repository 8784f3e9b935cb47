"""From Arrow columns to arrays: labels, dense inputs and bags of keys.

Nulls, lists, strings and weights end here: behind this module everything is an array of one type.
docs/data.md says which columns are accepted and what becomes of their values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from worker.data.batch import NO_GROUP, Bags, Batch
from worker.data.column_types import is_list
from worker.data.key_hash import (
    NotAKeyError,
    key_of,
    keys_of,
    stored,
    valid_of,
    values_of,
)
from worker.data.labels import labels_of, task_labels
from worker.data.segments import Segments, joined, segments_of
from worker.errors import DataError, UnreadableError
from worker.spec import FeatureSpec, SparseFeature

Where = tuple[str, int | None]
"""A file and one of its row groups, for messages."""

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """Samples of one row group as arrays; the fields are those of `Batch`.

    Batches are views of these arrays, so nobody writes to them.
    """

    labels: _Floats
    dense: _Floats
    sparse: tuple[Bags, ...]
    weights: _Floats | None = None
    segments: Segments | None = None
    groups: _Ints | None = None

    @property
    def num_rows(self) -> int:
        return len(self.dense)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return (
            self.labels.nbytes
            + self.dense.nbytes
            + (0 if self.weights is None else self.weights.nbytes)
            + (0 if self.segments is None else self.segments.of.nbytes)
            + (0 if self.groups is None else self.groups.nbytes)
            + sum(
                array.nbytes
                for bags in self.sparse
                for array in (bags.keys, bags.offsets, bags.weights)
                if array is not None
            )
        )

    def batch(self, start: int, stop: int) -> Batch:
        """Return rows [start, stop): views, but for the offsets of bags.

        Bags of one key each have no offsets, whatever those of other rows have.
        """
        return Batch(
            self.labels[start:stop],
            self.dense[start:stop],
            tuple(_slice_bags(bags, start, stop) for bags in self.sparse),
            None if self.weights is None else self.weights[start:stop],
            None if self.segments is None else self.segments.rows(slice(start, stop)),
            None if self.groups is None else self.groups[start:stop],
        )

    def take(self, order: _Ints) -> "Columns":
        """Return the rows at the positions `order`, int64[m], as a copy."""
        labels = self.labels[order] if self.labels.size else self.labels
        weights = None if self.weights is None else self.weights[order]
        sparse = tuple(_take_bags(bags, order) for bags in self.sparse)
        segments = None if self.segments is None else self.segments.rows(order)
        groups = None if self.groups is None else self.groups[order]
        return Columns(labels, self.dense[order], sparse, weights, segments, groups)


def columns_from_table(
    table: pa.Table, features: FeatureSpec, *, where: Where, first_row: int = 0
) -> Columns:
    """Convert a table whose schema has passed `check_schema`.

    Args:
        table: n rows, with the columns of `features` and perhaps others.
        features: the columns to convert.
        where: file and row group, for messages.
        first_row: position of the table's first row in the row group, for messages.

    Returns:
        n samples, in the table's order, in writable C-contiguous arrays. Keys may share memory with
        the table.

    Raises:
        DataError: a label that is null or not 0 or 1, a key of labels that is null, a sample's
            weight that is null, negative or not finite, an infinite dense value, a key's weight
            that is null or not finite, weights that don't match their keys; `UnreadableError` for
            arrays that only a damaged file has.
    """
    labels, weights, segments, groups = np.empty(0, np.float32), None, None, None
    try:
        if features.label is not None:
            labels = labels_of(_array(table, features.label), features.label, where)
        elif features.tasks:
            labels = task_labels(partial(_array, table), table.num_rows, features.tasks, where)
        if features.weight is not None:
            weights = _sample_weights(_array(table, features.weight), features.weight, where)
        if features.key is not None:
            join_keys(table, features.key, where=where)
        if features.segment is not None:
            segments = segments_of(_array(table, features.segment))
        if features.group is not None:
            groups = _groups(_array(table, features.group), features.group, where)
        return Columns(
            labels,
            _dense(table, features, where),
            tuple(_bags(table, feature, where) for feature in features.sparse),
            weights,
            segments,
            groups,
        )
    except DataError as error:
        if error.row is not None:
            error.row += first_row
        raise


def join_keys(table: pa.Table, name: str, *, where: Where) -> _Ints:
    """Return the keys by which samples find their labels.

    Returns:
        int64[n], see `keys_of`.

    Raises:
        DataError: one is null, or not an exact whole number; `UnreadableError`, as `_bags`.
    """
    array = _array(table, name)
    try:
        keys, valid = keys_of(array)
    except IndexError as error:
        raise _damaged(name, where, error) from error
    except NotAKeyError as error:
        what = "a key is not an exact whole number"
        got, remedy = f"got {error.value}, expected {error.expected}", "Write integers or strings"
        raise _refused(where, name, error.position, what, got, remedy) from error
    if valid is not None and not valid.all():
        row = int(np.argmin(valid))
        remedy = "Give each sample and label a key, or leave such rows out"
        got = "got null: nothing says which label is of which sample"
        raise _refused(where, name, row, "a key of labels is null", got, remedy)
    return keys


def _groups(array: pa.Array, name: str, where: Where) -> _Ints:
    """Return the keys of what samples are ranked within, int64[n]; NO_GROUP where null."""
    try:
        keys, valid = keys_of(array)
    except IndexError as error:
        raise _damaged(name, where, error) from error
    except NotAKeyError as error:
        got, remedy = f"got {error.value}, expected {error.expected}", "Write integers or strings"
        what = "a group is not an exact whole number"
        raise _refused(where, name, error.position, what, got, remedy) from error
    if valid is not None:
        keys[~valid] = NO_GROUP
    return keys


def join(parts: list[Columns], order: _Ints | None = None) -> Columns:
    """Join the rows of parts, in another order where one is given; `parts` is emptied.

    Memory beyond that of the parts is about that of a column at a time.
    """
    if len(parts) == 1:
        whole = parts.pop()
        return whole if order is None else whole.take(order)
    whole = Columns(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.dense for part in parts]),
        (),
        _joined_weights(parts),
        _joined_segments(parts),
        _joined_groups(parts),
    )
    if order is not None:
        whole = whole.take(order)
    columns = [list(bags) for bags in zip(*(part.sparse for part in parts), strict=True)]
    parts.clear()
    sparse = []
    while columns:
        bags = _join_bags(columns.pop(0))
        sparse.append(bags if order is None else _take_bags(bags, order))
    return replace(whole, sparse=tuple(sparse))


def concatenate(parts: Sequence[Batch]) -> Batch:
    """Join batches of the same features, at least one; a single one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.dense for part in parts]),
        tuple(_join_bags(bags) for bags in zip(*(part.sparse for part in parts), strict=True)),
        _joined_weights(parts),
        _joined_segments(parts),
        _joined_groups(parts),
    )


def _joined_weights(parts: Sequence[Columns | Batch]) -> _Floats | None:
    weights = [part.weights for part in parts if part.weights is not None]
    return np.concatenate(weights) if weights else None


def _joined_segments(parts: Sequence[Columns | Batch]) -> Segments | None:
    segments = [part.segments for part in parts if part.segments is not None]
    return joined(segments) if segments else None


def _joined_groups(parts: Sequence[Columns | Batch]) -> _Ints | None:
    groups = [part.groups for part in parts if part.groups is not None]
    return np.concatenate(groups) if groups else None


def repeated(bags: Bags, order: _Ints) -> Bags:
    """Return the bags at the positions `order`, int64[m], as a copy."""
    return _take_bags(bags, order)


def _array(table: pa.Table, name: str) -> pa.Array:
    """One array of a column, its chunks joined, extension types as what they store."""
    column = table.column(name)
    return stored(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def _numbers(array: pa.Array) -> _Floats:
    """Numbers as float32[n], a copy; unspecified where null, infinite where out of range."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values_of(array).astype(np.float32)


def _sample_weights(array: pa.Array, name: str, where: Where) -> _Floats:
    weights = _numbers(array)
    legal = np.isfinite(weights) & (weights >= 0)
    valid = valid_of(array)
    if valid is not None:
        legal &= valid
    if not legal.all():
        row = int(np.argmin(legal))
        what = "a sample's weight is null, negative, or not finite as a 32-bit float"
        got = f"got {_shown(array, row)}, expected a finite number >= 0"
        remedy = "Write 1 for a sample that counts as any other, and 0 for one that does not count"
        raise _refused(where, name, row, what, got, remedy)
    return weights


def _dense(table: pa.Table, features: FeatureSpec, where: Where) -> _Floats:
    # Column by column in contiguous memory, then one transposition: faster than strided writes.
    by_column = np.empty((len(features.dense), table.num_rows), np.float32)
    for values, name in zip(by_column, features.dense, strict=True):
        array = _array(table, name)
        if array.null_count and pa.types.is_floating(array.type):
            array = array.fill_null(0)  # a fifth of what a mask takes
        values[:] = _numbers(array)
        valid = valid_of(array)
        if valid is not None:
            values[~valid] = 0
        finite = np.isfinite(values)
        if not finite.all():
            values[np.isnan(values)] = 0
            _refuse_infinite(array, np.isinf(values), name, where)
        if features.dense_transform == "log1p":
            np.log1p(np.maximum(values, 0, out=values), out=values)
    return np.ascontiguousarray(by_column.T)


def _refuse_infinite(array: pa.Array, infinite: _Mask, name: str, where: Where) -> None:
    if infinite.any():
        row = int(np.argmax(infinite))
        what = "a dense value is infinite or too large for 32-bit floats"
        got = f"got {_shown(array, row)}, expected a magnitude below 3.4e38, null or NaN"
        raise _refused(where, name, row, what, got, "Clip the column or write null")


def _refused(where: Where, column: str, row: int, what: str, got: str, remedy: str) -> DataError:
    file, row_group = where
    return DataError(
        what=what, file=file, column=column, row_group=row_group, row=row, got=got, remedy=remedy
    )


def _damaged(column: str, where: Where, error: Exception) -> UnreadableError:
    file, row_group = where
    return UnreadableError(
        what="a row group is damaged",
        file=file,
        column=column,
        row_group=row_group,
        got=str(error),
    )


def _shown(array: pa.Array, row: int) -> str:
    value = array[row].as_py()
    return "null" if value is None else repr(value)


def _flat(array: pa.Array, *, nulls_are_lists: bool) -> tuple[_Ints | None, pa.Array]:
    """Offsets of the lists, int64[n + 1], and their elements; null lists as empty ones.

    Offsets are None where the array has no lists. `nulls_are_lists` takes the values of Arrow's
    null type as null lists: a writer infers it for lists and for single values alike.
    """
    if nulls_are_lists and pa.types.is_null(array.type):
        return np.zeros(len(array) + 1, np.int64), array.slice(0, 0)
    if not is_list(array.type):
        return None, array
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    return _prefix_sums(values_of(lengths)), stored(array.flatten())


def _prefix_sums(lengths: npt.NDArray[Any]) -> _Ints:
    sums = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=sums[1:])
    return sums


def _bags(table: pa.Table, feature: SparseFeature, where: Where) -> Bags:
    named = [name for name in (feature.column, feature.weights) if name is not None]
    has_lists = any(is_list(table.schema.field(name).type) for name in named)
    offsets, elements = _flat(_array(table, feature.column), nulls_are_lists=has_lists)
    try:
        keys, valid = keys_of(elements)
    except IndexError as error:
        raise _damaged(feature.column, where, error) from error
    except NotAKeyError as error:
        row = error.position
        if offsets is not None:
            row = int(np.searchsorted(offsets, row, "right")) - 1
        raise DataError(
            what="a key is not an exact whole number",
            file=where[0],
            column=feature.column,
            row_group=where[1],
            row=row,
            got=f"got {error.value}, expected {error.expected}",
            remedy="Use the column as a dense one, or write it as integers or strings",
        ) from error
    if feature.pad is not None:
        padding = keys == key_of(feature.pad)
        if padding.any():
            valid = ~padding if valid is None else valid & ~padding
    weights = None
    if feature.weights is not None:
        weights = _weights(table, feature, offsets, valid, where)
    bags = Bags(keys, offsets, weights)
    if valid is not None:
        bags = _keep(bags, valid)
    if feature.max_length is not None and bags.offsets is not None:
        lengths = np.diff(bags.offsets)
        if (lengths > feature.max_length).any():
            position = np.arange(bags.keys.size) - np.repeat(bags.offsets[:-1], lengths)
            if feature.keep == "first":
                kept = position < feature.max_length
            else:
                kept = position >= np.repeat(lengths - feature.max_length, lengths)
            bags = _keep(bags, kept)
    return bags


def _weights(
    table: pa.Table,
    feature: SparseFeature,
    offsets: _Ints | None,
    keys_valid: _Mask | None,
    where: Where,
) -> _Floats:
    """Weights of all elements; those of nulls and padding are left out, so they may be anything."""
    name = feature.weights
    assert name is not None
    own_offsets, elements = _flat(_array(table, name), nulls_are_lists=offsets is not None)
    if offsets is not None and own_offsets is not None:
        differs = np.diff(offsets) != np.diff(own_offsets)
        if differs.any():
            row = int(np.argmax(differs))
            found, expected = np.diff(own_offsets)[row], np.diff(offsets)[row]
            what = "the number of weights is not the number of keys"
            got = f"got {found}, expected {expected} as in column {feature.column!r}"
            raise _refused(where, name, row, what, got, "Write one weight for each key")
    weights = _numbers(elements)
    legal = np.isfinite(weights)
    valid = valid_of(elements)
    if valid is not None:
        legal &= valid
    if keys_valid is not None:
        legal |= ~keys_valid
    if not legal.all():
        at = int(np.argmin(legal))
        row = at if offsets is None else int(np.searchsorted(offsets, at, side="right")) - 1
        got = f"got {_shown(elements, at)}, expected a finite number"
        remedy = "Write 1 where a key has no weight of its own"
        raise _refused(where, name, row, "a weight is null or not finite", got, remedy)
    return weights


def _keep(bags: Bags, mask: _Mask) -> Bags:
    """Leave out the keys where `mask` is false, with their weights."""
    kept = _prefix_sums(mask)
    return Bags(
        bags.keys[mask],
        kept if bags.offsets is None else kept[bags.offsets],
        None if bags.weights is None else bags.weights[mask],
    )


def _slice_bags(bags: Bags, start: int, stop: int) -> Bags:
    if bags.offsets is None:
        weights = None if bags.weights is None else bags.weights[start:stop]
        return Bags(bags.keys[start:stop], None, weights)
    offsets = bags.offsets[start : stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    weights = None if bags.weights is None else bags.weights[first:last]
    # Which rows were decoded together must not show in a batch.
    all_single = last - first == stop - start and bool((np.diff(offsets) == 1).all())
    return Bags(bags.keys[first:last], None if all_single else offsets - first, weights)


def _take_bags(bags: Bags, order: _Ints) -> Bags:
    if bags.offsets is None:
        weights = None if bags.weights is None else bags.weights[order]
        return Bags(bags.keys[order], None, weights)
    lengths = np.diff(bags.offsets)[order]
    offsets = _prefix_sums(lengths)
    moved_by = bags.offsets[order] - offsets[:-1]
    index = np.arange(offsets[-1]) + np.repeat(moved_by, lengths)
    return Bags(bags.keys[index], offsets, None if bags.weights is None else bags.weights[index])


def _join_bags(parts: Sequence[Bags]) -> Bags:
    keys = np.concatenate([part.keys for part in parts])
    offsets = None
    if any(part.offsets is not None for part in parts):
        lengths = [
            np.ones(part.keys.size, np.int64) if part.offsets is None else np.diff(part.offsets)
            for part in parts
        ]
        offsets = _prefix_sums(np.concatenate(lengths))
    weights = [part.weights for part in parts if part.weights is not None]
    return Bags(keys, offsets, np.concatenate(weights) if weights else None)
