"""Samples of the most usual kind: numbers, and one integer of 64 bits for each sparse feature.

The rules of training, by Arrow, take as long for each column as a small model for a sample. Here
all columns of one type are read at once; whatever is not of the usual kind is left to the rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.batch import Bags, Batch, SingleKeys
from worker.data.shared import SharedBatch
from worker.spec import FeatureSpec

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

_MOST_SPLITS = 64
_NO_LABELS = np.empty(0, np.float32)
# Up to here float64 has every integer, so float32 of it is that of the integer itself.
_EXACT = float(1 << 53)


@dataclass(frozen=True, slots=True)
class Split:
    """Which columns are given for each sample, and which once for all of them.

    Args:
        dense, shared_dense: their names, of either kind.
        keys, shared_keys: likewise, one for each sparse feature.
        flags: for each sparse feature, whether its keys are shared.
        places, shared_places: int64, which dense feature each one of `dense` is.
    """

    dense: tuple[str, ...]
    shared_dense: tuple[str, ...]
    keys: tuple[str, ...]
    shared_keys: tuple[str, ...]
    flags: tuple[bool, ...]
    places: Int64s
    shared_places: Int64s

    @property
    def shares(self) -> bool:
        """Whether some column is given once."""
        return bool(self.shared_dense or self.shared_keys)


class UsualSamples:
    """Makes batches of columns of the usual kind.

    Args:
        features: all of one integer a sample, without weights and padding.
    """

    def __init__(self, features: FeatureSpec) -> None:
        self._features = features
        self._num_columns = len(features.columns())
        self._splits: dict[frozenset[str], Split] = {}

    def split(self, context: frozenset[str]) -> Split:
        """Return which columns are given how, where these are given once."""
        found = self._splits.get(context)
        if found is None:
            if len(self._splits) >= _MOST_SPLITS:
                self._splits.clear()
            found = self._splits[context] = _split(self._features, context)
        return found

    def of_lists(
        self, columns: Mapping[str, Any], context: Mapping[str, Any]
    ) -> SingleKeys | SharedBatch | None:
        """Return the samples of lists of values; None: something is not of the usual kind.

        Args:
            columns: by name, a value for each sample.
            context: likewise, one value for all.
        """
        if not columns or len(columns) + len(context) != self._num_columns:
            return None
        first = next(iter(columns.values()))
        if not isinstance(first, list | tuple):
            return None
        split, n = self.split(frozenset(context)), len(first)
        try:
            dense = _floats([columns[name] for name in split.dense], n)
            keys = _integers([columns[name] for name in split.keys], n)
            shared_dense = _floats([context[name] for name in split.shared_dense], 1)
            shared_keys = _integers([context[name] for name in split.shared_keys], 1)
        except KeyError:
            return None
        if dense is None or keys is None or shared_dense is None or shared_keys is None:
            return None
        return self.of_arrays(split, dense, keys, shared_dense, shared_keys)

    def of_samples(self, dense: Float32s, keys: Int64s) -> SingleKeys:
        """Return the samples of columns that are all given for each sample.

        Args:
            dense: float32[n, columns], finite, as they came; overwritten.
            keys: int64[columns, n].
        """
        _transform(self._features, dense)
        return SingleKeys(dense, keys)

    def of_arrays(
        self,
        split: Split,
        dense: Float32s,
        keys: Int64s,
        shared_dense: Float32s,
        shared_keys: Int64s,
    ) -> SingleKeys | SharedBatch | None:
        """Return the samples of columns; None: a number is not finite.

        Args:
            split: by which the columns are given.
            dense: float32[columns, n], as they came; overwritten.
            keys: int64[columns, n].
            shared_dense, shared_keys: likewise, of one sample.
        """
        own = transformed(self._features, dense)
        if own is None:
            return None
        if not split.shares:
            return SingleKeys(own, keys)
        shared = transformed(self._features, shared_dense)
        if shared is None:
            return None
        n = dense.shape[1]
        values = np.empty((n, len(self._features.dense)), np.float32)
        values[:, split.places] = own
        values[:, split.shared_places] = shared
        rows, shared_rows = iter(keys), iter(shared_keys)
        bags = tuple(Bags(next(shared_rows if flag else rows)) for flag in split.flags)
        return SharedBatch(
            Batch(_NO_LABELS, values, bags), np.zeros(n, np.int64), split.flags, not split.dense
        )


def transformed(features: FeatureSpec, by_column: Float32s) -> Float32s | None:
    """Return dense values as a batch has them, float32[n, columns]; None: one is not finite.

    Args:
        by_column: float32[columns, n], as they came; overwritten.
    """
    if not np.isfinite(by_column).all():
        return None
    _transform(features, by_column)
    return np.ascontiguousarray(by_column.T)


def _transform(features: FeatureSpec, values: Float32s) -> None:
    if features.dense_transform == "log1p":
        np.log1p(np.maximum(values, 0, out=values), out=values)


def _split(features: FeatureSpec, context: frozenset[str]) -> Split:
    flags = tuple(feature.column in context for feature in features.sparse)
    sparse = [feature.column for feature in features.sparse]
    places = [number for number, name in enumerate(features.dense) if name not in context]
    shared = [number for number, name in enumerate(features.dense) if name in context]
    return Split(
        dense=tuple(features.dense[number] for number in places),
        shared_dense=tuple(features.dense[number] for number in shared),
        keys=tuple(name for name in sparse if name not in context),
        shared_keys=tuple(name for name in sparse if name in context),
        flags=flags,
        places=np.array(places, np.int64),
        shared_places=np.array(shared, np.int64),
    )


def _flat(columns: Sequence[Any], n: int) -> list[Any] | None:
    """Return the values of lists of one length, one list after another."""
    if not {*map(type, columns)} <= {list, tuple} or not {*map(len, columns)} <= {n}:
        return None
    return list(chain.from_iterable(columns))


def _integers(columns: Sequence[Any], n: int) -> Int64s | None:
    flat = _flat(columns, n)
    if flat is None or not {*map(type, flat)} <= {int}:
        return None
    try:
        return np.array(flat, np.int64).reshape(len(columns), n)
    except OverflowError:
        return None


def _floats(columns: Sequence[Any], n: int) -> Float32s | None:
    flat = _flat(columns, n)
    types = {*map(type, flat or ())}
    if flat is None or not types <= {int, float}:
        return None
    try:
        values = np.array(flat, np.float64).reshape(len(columns), n)
    except OverflowError:
        return None
    if int in types and (np.abs(values) > _EXACT).any():
        return None
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
