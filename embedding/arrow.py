"""Rows as Arrow columns: the form of checkpoint files, and of exports for other tools.

    key                       int64
    frequency, version        int64, of tables that track usage
    vector, slot_NAME...      fixed_size_list<float>, a slot for each of the optimizer's

The only module here that needs pyarrow; importing the package does not load it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding.entries import CounterEntries, TableEntries
from embedding.kernels.arguments import input_array
from embedding.optimizers.rule import OptimizerRule, rule_for
from embedding.spec.table import TableSpec

_FLOAT32 = np.dtype(np.float32)
_NUMBERS = ("key", "frequency", "version")

COUNTER_SCHEMA = pa.schema([(name, pa.int64()) for name in _NUMBERS])
"""Columns of counters of keys without a row."""


def row_schema(spec: TableSpec, *, slots: bool = True) -> pa.Schema:
    """Return the columns of a table's rows, with or without the optimizer's slots."""
    numbers = [(name, pa.int64()) for name in _numbers_of(spec)]
    fields = [*numbers, ("vector", pa.list_(pa.float32(), spec.dim))]
    if slots:
        fields += slot_fields(rule_for(spec.optimizer, sparse=True), spec.dim)
    return pa.schema(fields)


def slot_fields(rule: OptimizerRule, dim: int) -> list[tuple[str, pa.DataType]]:
    """Return name and type of the column of each slot."""
    return [(f"slot_{slot.name}", pa.list_(pa.float32(), slot.width(dim))) for slot in rule.slots]


def to_arrow(entries: TableEntries, spec: TableSpec, *, slots: bool = True) -> pa.Table:
    """Return rows as a table of `row_schema`; keys and vectors are not copied.

    Args:
        entries: rows of a table of this spec.
        slots: whether their slots are columns, too.

    Raises:
        ValueError: vectors or slots have another type or shape.
    """
    rule, n = rule_for(spec.optimizer, sparse=True), len(entries.keys)
    vectors = input_array("vectors", entries.vectors, _FLOAT32, (n, spec.dim))
    numbers = _number_columns(entries)[: len(_numbers_of(spec))]
    columns = [*numbers, list_column(vectors)]
    if slots:
        width = rule.row_width(spec.dim) - spec.dim
        of_rows = input_array("slots", entries.slots, _FLOAT32, (n, width))
        columns += slot_columns(rule, spec.dim, of_rows)
    return pa.Table.from_arrays(columns, schema=row_schema(spec, slots=slots))


def from_arrow(
    table: pa.Table | pa.RecordBatch, spec: TableSpec, *, allow_nonfinite: bool = False
) -> TableEntries:
    """Return the rows of a table or batch that has the columns of `row_schema`, in any order.

    What lies in memory in one piece is not copied, and can't be written then.

    Args:
        allow_nonfinite: take vectors and slots that hold NaN or infinity, as a checkpoint of a
            model that diverged may.

    Raises:
        ValueError: a column is missing, unknown or there twice, has another type or width, or
            holds nulls or values that are not finite; the text names it.
    """
    schema = row_schema(spec)
    check_columns(table.schema, schema, of=f"rows of table {spec.name}")
    check_no_nulls(table)
    names = _numbers_of(spec)
    keys, *usage = (_numbers(table, name) for name in names)
    vectors, *slots = [
        _floats(table, name, allow_nonfinite=allow_nonfinite) for name in schema.names[len(names) :]
    ]
    frequency, version = usage or np.zeros((2, len(keys)), np.int64)
    return TableEntries(keys, frequency, version, vectors, _side_by_side(slots, len(keys)))


def entries_of(batch: pa.RecordBatch, spec: TableSpec) -> TableEntries:
    """Return the rows of a batch whose columns are those of `row_schema`, in order and no nulls.

    Nothing is checked, and nothing copied but slots where there are several.
    """
    columns = batch.columns
    num_numbers = len(_numbers_of(spec))
    keys, *usage = (column.to_numpy() for column in columns[:num_numbers])
    vectors, *slots = (matrix(column) for column in columns[num_numbers:])
    frequency, version = usage or np.zeros((2, len(keys)), np.int64)
    return TableEntries(keys, frequency, version, vectors, _side_by_side(slots, len(keys)))


def counters_to_arrow(entries: CounterEntries) -> pa.Table:
    """Return counters as a table of `COUNTER_SCHEMA`; nothing is copied."""
    return pa.Table.from_arrays(_number_columns(entries), schema=COUNTER_SCHEMA)


def counters_from_arrow(table: pa.Table | pa.RecordBatch) -> CounterEntries:
    """Return the counters of a table or batch that has the columns of `COUNTER_SCHEMA`.

    Raises:
        ValueError: see `from_arrow`.
    """
    check_columns(table.schema, COUNTER_SCHEMA, of="counters")
    check_no_nulls(table)
    return CounterEntries(*(_numbers(table, name) for name in _NUMBERS))


def check_columns(found: pa.Schema, expected: pa.Schema, *, of: str) -> None:
    """Raise ValueError where columns are not those expected, in any order; the text names one."""
    for name in found.names:
        if name not in expected.names:
            raise ValueError(
                f"{of} have no column {name!r}; the columns are {', '.join(expected.names)}"
            )
    for field in expected:
        times = found.names.count(field.name)
        if times != 1:
            there = "is missing" if times == 0 else f"is there {times} times"
            raise ValueError(f"{of} need a column {field.name!r} of {field.type}; it {there}")
        got = found.field(field.name).type
        if got != field.type:
            raise ValueError(f"column {field.name!r} of {of} must be {field.type}, got {got}")


def check_no_nulls(table: pa.Table | pa.RecordBatch) -> None:
    """Raise ValueError where a value, or one of a list, is null; the text names the column."""
    for name in table.schema.names:
        column = table.column(name)
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        nulls = column.null_count
        if not nulls and pa.types.is_fixed_size_list(column.type):
            nulls = sum(_values_of(chunk).null_count for chunk in chunks)
        if nulls:
            raise ValueError(
                f"column {name!r} has {nulls} nulls; fill them, or leave their rows out"
            )


def list_column(values: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Return float32[n, width] as lists of that width, not copied where it is contiguous."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def slot_columns(rule: OptimizerRule, dim: int, slots: npt.NDArray[np.float32]) -> list[pa.Array]:
    """Return the column of each slot, of float32[n, sum of the slots' widths]."""
    return [list_column(slots[:, part]) for part in rule.columns(dim)]


def matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """Return lists of fixed size, without nulls, as an array [n, width]; not copied."""
    return _values_of(column).to_numpy().reshape(len(column), column.type.list_size)


def _values_of(column: pa.FixedSizeListArray) -> pa.Array:
    """Return what lists of fixed size hold, also those that are null; `flatten` would copy it."""
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)


def _side_by_side(columns: list[npt.NDArray[np.float32]], n: int) -> npt.NDArray[np.float32]:
    """Return float32[n, any] each as one array; the only one as it is."""
    if len(columns) == 1:
        return columns[0]
    return np.hstack([np.empty((n, 0), np.float32), *columns])


def _numbers_of(spec: TableSpec) -> tuple[str, ...]:
    """Return the names of the columns of rows that are numbers, `key` first."""
    return _NUMBERS if spec.track_usage else _NUMBERS[:1]


def _number_columns(entries: TableEntries | CounterEntries) -> list[pa.Array]:
    return [pa.array(entries.keys), pa.array(entries.frequency), pa.array(entries.version)]


def _whole(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """Return a column in one piece; one that is in one piece is not copied."""
    column = table.column(name)
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(table: pa.Table | pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    return _whole(table, name).to_numpy()


def _floats(
    table: pa.Table | pa.RecordBatch, name: str, *, allow_nonfinite: bool
) -> npt.NDArray[np.float32]:
    values = matrix(_whole(table, name))
    if not (allow_nonfinite or np.isfinite(values).all()):
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(
            f"column {name!r}, row {row} holds NaN or infinity; leave such rows out, or take them"
            " with allow_nonfinite"
        )
    return values
