"""From a request's columns to a batch, by the rules by which training reads its files."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from runtime.near_names import near_name
from serving.calls import OUTPUT
from serving.errors import RequestError, cut, shown
from serving.usual import UsualSamples, transformed
from worker.contract import DataContract
from worker.data.batch import Bags, Batch, SingleKeys
from worker.data.column_types import column_kinds, is_list
from worker.data.columns import columns_from_table
from worker.data.shared import SharedBatch
from worker.errors import DataError
from worker.spec import FeatureSpec

Samples = Batch | SharedBatch | SingleKeys

_WHERE = ("the request", None)
_INT64 = pa.int64()
_NUMBERS = (pa.float32(), pa.float64(), pa.int64())


class RequestSchema:
    """The columns that a request must have: those of the job, without its label and weight.

    Args:
        features: of the model.
        contract: what the keys must be; None: not known.
        max_rows: most samples of one request.

    Attributes:
        outputs: names of what is predicted of each sample: of the tasks, or of one probability.
        usual: makes batches of columns of numbers and of one integer a sample; None: some column is
            never one of these.
    """

    def __init__(
        self, features: FeatureSpec, contract: DataContract | None, *, max_rows: int
    ) -> None:
        self.features = features.inputs()
        self.columns = self.features.columns()
        self.max_rows = max_rows
        self.outputs = tuple(task.name for task in features.tasks) or (OUTPUT,)
        self._answers = dict.fromkeys(features.label_columns, "label")
        self._answers |= {} if features.weight is None else {features.weight: "weight"}
        self._known = frozenset(self.columns)
        self.kinds = {} if contract is None else contract.keys
        self._keys = {feature.column for feature in self.features.sparse}
        self.usual = UsualSamples(self.features) if self._takes_single_integers() else None

    def _takes_single_integers(self) -> bool:
        """Whether a column of one integer of 64 bits a sample is always the keys as they are."""
        return all(
            feature.weights is None
            and feature.pad is None
            and self.kinds.get(feature.name, "integer") == "integer"
            for feature in self.features.sparse
        )

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse columns that are missing or not known.

        Raises:
            RequestError: names the first one, and the nearest that there is.
        """
        given = set(names)
        for unknown in sorted(given - self._known):
            self.check_known(unknown)
        if given != self._known:
            missing = next(name for name in self.columns if name not in given)
            raise RequestError(f"column {missing!r} is missing; the model reads {self._listed()}")

    def check_known(self, name: str) -> None:
        """Refuse a column that the model does not read.

        Raises:
            RequestError: names it, and the nearest that there is.
        """
        if name in self._known:
            return
        if name in self._answers:
            raise RequestError(
                f"column {name!r} is the {self._answers[name]}; leave it out of requests"
            )
        begins = cut(name)
        near = near_name(name, self.columns) if name == begins else None
        hint = f"; did you mean {near!r}?" if near else f"; it reads {self._listed()}"
        raise RequestError(f"the model reads no column {begins!r}{hint}")

    def _listed(self) -> str:
        shown = self.columns[:50]
        return ", ".join(shown) + (", ..." if len(self.columns) > len(shown) else "")

    def batch_of_rows(
        self, rows: Sequence[Any], context: Mapping[str, Any] | None = None
    ) -> Samples:
        """Return a batch of samples that are given one by one, each {column: value}.

        A value may be null; a column may not be left out.

        Args:
            rows: the samples, without the columns of the context.
            context: {column: value}, what all samples have in common.

        Raises:
            RequestError: what is wrong, with the row's number.
        """
        self._check_count(len(rows))
        shared = {name: [value] for name, value in (context or {}).items()}
        for name in shared:
            self.check_known(name)
        names = [name for name in self.columns if name not in shared]
        columns = _columns_of_rows(rows, names)
        if columns is None:
            columns = self._checked_columns(rows, names, shared)
        return self.batch_of_columns(columns, shared)

    def _checked_columns(
        self, rows: Sequence[Any], names: Sequence[str], shared: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """Return the columns of rows one by one, so that the first one that is wrong is named."""
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RequestError(f"row {number} must be an object {{column: value}}")
            if row.keys() != columns.keys():
                try:
                    self._check_sides(row, shared)
                    self.check_names([*row, *shared])
                except RequestError as error:
                    raise RequestError(f"row {number}: {error}") from None
            for name, values in columns.items():
                values.append(row[name])
        return columns

    def batch_of_columns(
        self, columns: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> Samples:
        """Return a batch of samples that are given as columns.

        Args:
            columns: by name Arrow arrays, or lists of values, one for each sample.
            context: likewise, of one value each, what all samples have in common.

        Raises:
            RequestError: a name or a value is wrong, or columns differ in length.
        """
        context = context or {}
        usual = None if self.usual is None else self.usual.of_lists(columns, context)
        if usual is not None and 1 <= usual.num_samples <= self.max_rows:
            return usual
        self._check_sides(columns, context)
        self.check_names([*columns, *context])
        names = [name for name in self.columns if name in columns]
        arrays = {name: self._array(name, columns[name]) for name in names}
        lengths = {name: len(array) for name, array in arrays.items()}
        rows = next(iter(lengths.values()), 0)
        for name, length in lengths.items():
            if length != rows:
                raise RequestError(
                    f"column {name!r} has {length} values, column {names[0]!r} {rows}"
                )
        self._check_count(rows)
        if not context:
            return self._converted(arrays, self.features, rows)
        return self._shared(arrays, rows, {n: self._array(n, context[n]) for n in context})

    def _check_sides(self, columns: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        """Refuse a column that is among the samples and in their context, or half in each."""
        if twice := sorted(columns.keys() & context.keys()):
            raise RequestError(f"column {cut(twice[0])!r} is in the context, and again beside it")
        if not context:
            return
        for feature in self.features.sparse:
            if feature.weights and (feature.weights in context) != (feature.column in context):
                raise RequestError(
                    f"column {feature.weights!r} has the weights of {feature.column!r}: either both"
                    " are in the context or none"
                )

    def _shared(
        self, arrays: Mapping[str, pa.Array], rows: int, context: Mapping[str, pa.Array]
    ) -> SharedBatch:
        for name, array in context.items():
            if len(array) != 1:
                raise RequestError(f"column {name!r} of the context has {len(array)} values, not 1")
        own, one = self._part(arrays), self._part(context)
        batch, alike = self._converted(arrays, own, rows), self._converted(context, one, 1)
        dense = np.empty((rows, len(self.features.dense)), np.float32)
        for part, found in ((own, batch), (one, alike)):
            for number, name in enumerate(part.dense):
                dense[:, self.features.dense.index(name)] = found.dense[:, number]
        bags, shared_bags = iter(batch.sparse), iter(alike.sparse)
        flags = tuple(feature.column in context for feature in self.features.sparse)
        sparse = tuple(next(shared_bags if shared else bags) for shared in flags)
        return SharedBatch(
            Batch(batch.labels, dense, sparse),
            np.zeros(rows, np.int64),
            flags,
            set(self.features.dense) <= context.keys(),
        )

    def _part(self, columns: Mapping[str, Any]) -> FeatureSpec:
        dense = tuple(name for name in self.features.dense if name in columns)
        sparse = tuple(each for each in self.features.sparse if each.column in columns)
        return replace(self.features, dense=dense, sparse=sparse)

    def _converted(self, arrays: Mapping[str, pa.Array], features: FeatureSpec, rows: int) -> Batch:
        plain = self._plain(arrays, features, rows)
        if plain is not None:
            return plain
        table = pa.table(dict(arrays))
        try:
            self._check_kinds(table.schema, features)
            return columns_from_table(table, features, where=_WHERE).batch(0, rows)
        except DataError as error:
            raise RequestError(_told(error)) from error

    def _plain(
        self, arrays: Mapping[str, pa.Array], features: FeatureSpec, rows: int
    ) -> Batch | None:
        """Return what the rules make of columns that are most usual, in a tenth of the time.

        Those are numbers without null, and one integer of 64 bits for each sample. None: there are
        others, or some value is to be refused.
        """
        bags = []
        for feature in features.sparse:
            array = arrays[feature.column]
            usual = feature.weights is None and feature.pad is None
            if not usual or array.type != _INT64 or array.null_count:
                return None
            if self.kinds.get(feature.name, "integer") != "integer":
                return None
            bags.append(Bags(np.array(array.to_numpy())))
        by_column = np.empty((len(features.dense), rows), np.float32)
        for values, name in zip(by_column, features.dense, strict=True):
            array = arrays[name]
            if array.type not in _NUMBERS or array.null_count:
                return None
            with np.errstate(over="ignore"):
                values[:] = array.to_numpy()
        dense = transformed(self.features, by_column)
        return None if dense is None else Batch(np.empty(0, np.float32), dense, tuple(bags))

    def _check_count(self, rows: int) -> None:
        if not 1 <= rows <= self.max_rows:
            raise RequestError(f"a request has 1 to {self.max_rows} samples, got {rows}")

    def _array(self, name: str, values: Any) -> pa.Array:
        if isinstance(values, pa.Array):
            return values
        if isinstance(values, tuple):
            values = list(values)
        if not isinstance(values, list):
            raise RequestError(f"column {name!r} must be a list of values, one for each sample")
        array = None
        with contextlib.suppress(OverflowError, pa.ArrowException, ValueError, TypeError):
            array = pa.array(values)
        if array is None and name not in self._keys:
            with contextlib.suppress(OverflowError, pa.ArrowException, ValueError, TypeError):
                array = pa.array(values, pa.uint64())
        if array is None or (name in self._keys and _may_hide_booleans(array.type)):
            self._check_values(name, values)
        if array is None:
            raise RequestError(f"column {name!r} has values of no one type")
        return array

    def _check_values(self, name: str, values: Sequence[Any]) -> None:
        """Name the first value that can't stand where it does."""
        first: tuple[str, int] | None = None
        for row, entry in enumerate(values):
            for value in entry if isinstance(entry, list) else (entry,):
                where = f"column {name!r}, row {row}: {shown(value)}"
                kind = _kind_of(value)
                if kind is None:
                    continue
                if kind == "boolean" and name in self._keys:
                    raise RequestError(f"{where} is no key; write 0 or 1, or what training had")
                large = kind == "integer" and not -(1 << 63) <= value < 1 << 63
                if large and name not in self._keys:
                    raise RequestError(
                        f"{where} is an integer of more than 64 bits; write it as a decimal number,"
                        " such as 1e30"
                    )
                if large:
                    raise RequestError(
                        f"{where} is beyond the integers from -2^63 to 2^63 - 1; write one of 64"
                        " bits without a sign as that of the same bits with one"
                    )
                if kind == "string" and not _is_text(value):
                    raise RequestError(f"column {name!r}, row {row}: a text has half a character")
                if first is None:
                    first = (kind, row)
                if kind != first[0] and {kind, first[0]} != {"integer", "number"}:
                    raise RequestError(
                        f"{where} is of type {kind}, the column has type {first[0]} from row"
                        f" {first[1]} on; all its values must have one"
                    )
        lists = [isinstance(entry, list) for entry in values if entry is not None]
        if any(lists) and not all(lists):
            raise RequestError(f"column {name!r} has lists and single values; write one of them")

    def _check_kinds(self, schema: pa.Schema, features: FeatureSpec) -> None:
        kinds = column_kinds(schema, features, _WHERE[0])
        for feature in features.sparse:
            found = kinds.get(("sparse column", feature.column))
            wanted = self.kinds.get(feature.name)
            if found is None or wanted is None:
                continue
            found = found.removeprefix("list of ")
            if found != wanted:
                raise RequestError(
                    f"column {feature.column!r} has keys of type {found}, the model was trained"
                    f" with {wanted}: equal values of two types are different keys"
                )


def _columns_of_rows(rows: Sequence[Any], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the columns of rows, as tuples; None: one is no dict, or has other names."""
    if len(names) < 2 or {*map(type, rows)} != {dict} or {*map(len, rows)} != {len(names)}:
        return None
    try:
        values = zip(*map(itemgetter(*names), rows), strict=True)
        return dict(zip(names, values, strict=True))
    except KeyError:
        return None


def _told(error: DataError) -> str:
    """Return what is wrong with a request's data: no file, and nothing to do about files."""
    places = [] if error.column is None else [f"column {error.column!r}"]
    places += [] if error.row is None else [f"row {error.row}"]
    where = f"{', '.join(places)}: " if places else ""
    return f"{where}{error.what}" + (f": {error.got}" if error.got else "")


def _may_hide_booleans(kind: pa.DataType) -> bool:
    """Return whether Arrow may have made an array of this type of JSON's true and false."""
    if is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_boolean(kind) or pa.types.is_floating(kind))


def _kind_of(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, list) else "object"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
