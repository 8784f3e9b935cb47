"""From a request's columns to a batch, by the rules by which training reads its files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from runtime.near_names import near_name
from serving.errors import RequestError
from worker.contract import DataContract
from worker.data.batch import Batch
from worker.data.column_types import column_kinds
from worker.data.columns import columns_from_table
from worker.errors import DataError
from worker.spec import FeatureSpec

_WHERE = ("the request", None)


class RequestSchema:
    """The columns that a request must have: those of the job, without its label.

    Args:
        features: of the model.
        contract: what the keys must be; None: not known.
        max_rows: most samples of one request.
    """

    def __init__(
        self, features: FeatureSpec, contract: DataContract | None, *, max_rows: int
    ) -> None:
        self.features = replace(features, label=None)
        self.columns = self.features.columns()
        self.max_rows = max_rows
        self._label = features.label
        self._known = frozenset(self.columns)
        self.kinds = {} if contract is None else contract.keys
        self._roles = {feature.column: feature for feature in self.features.sparse}

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse columns that are missing or not known.

        Raises:
            RequestError: names the first one, and the nearest that there is.
        """
        given = set(names)
        if unknown := sorted(given - self._known):
            raise RequestError(self._about_unknown(unknown[0]))
        if given != self._known:
            missing = next(name for name in self.columns if name not in given)
            raise RequestError(f"column {missing!r} is missing; the model reads {self._listed()}")

    def _about_unknown(self, name: str) -> str:
        if name == self._label:
            return f"column {name!r} is the label; leave it out of requests"
        near = near_name(name, self.columns)
        hint = f"; did you mean {near!r}?" if near else f"; it reads {self._listed()}"
        return f"the model reads no column {name!r}{hint}"

    def _listed(self) -> str:
        shown = self.columns[:50]
        return ", ".join(shown) + (", ..." if len(self.columns) > len(shown) else "")

    def batch_of_rows(self, rows: Sequence[Any]) -> Batch:
        """Return a batch of samples that are given one by one, each {column: value}.

        A value may be null; a column may not be left out.

        Raises:
            RequestError: what is wrong, with the row's number.
        """
        self._check_count(len(rows))
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RequestError(f"row {number} must be an object {{column: value}}")
            if row.keys() != self._known:
                try:
                    self.check_names(row)
                except RequestError as error:
                    raise RequestError(f"row {number}: {error}") from None
            for name, values in columns.items():
                values.append(row[name])
        return self.batch_of_columns(columns)

    def batch_of_columns(self, columns: Mapping[str, Any]) -> Batch:
        """Return a batch of samples that are given as columns.

        Args:
            columns: by name Arrow arrays, or lists of values, one for each sample.

        Raises:
            RequestError: a name or a value is wrong, or columns differ in length.
        """
        self.check_names(columns)
        arrays = {name: self._array(name, columns[name]) for name in self.columns}
        lengths = {name: len(array) for name, array in arrays.items()}
        rows = next(iter(lengths.values()), 0)
        for name, length in lengths.items():
            if length != rows:
                raise RequestError(
                    f"column {name!r} has {length} values, column {self.columns[0]!r} {rows}"
                )
        self._check_count(rows)
        table = pa.table(arrays)
        try:
            self._check_kinds(table.schema)
            whole = columns_from_table(table, self.features, where=_WHERE)
        except DataError as error:
            raise RequestError(str(error)) from error
        return whole.batch(0, rows)

    def _check_count(self, rows: int) -> None:
        if not 1 <= rows <= self.max_rows:
            raise RequestError(f"a request has 1 to {self.max_rows} samples, got {rows}")

    def _array(self, name: str, values: Any) -> pa.Array:
        if isinstance(values, pa.Array):
            return values
        if not isinstance(values, list):
            raise RequestError(f"column {name!r} must be a list of values, one for each sample")
        try:
            return pa.array(values)
        except OverflowError:
            pass
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise RequestError(f"column {name!r} has values of no one type: {error}") from error
        try:
            return pa.array(values, pa.uint64())
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise RequestError(f"column {name!r} has integers beyond 64 bits: {error}") from error

    def _check_kinds(self, schema: pa.Schema) -> None:
        kinds = column_kinds(schema, self.features, _WHERE[0])
        for feature in self.features.sparse:
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
