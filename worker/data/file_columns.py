"""Columns that a file has by another name, as another type, or not at all.

Tables rename columns and add new ones without touching their files, and keep the values by which
they are partitioned outside of them; folders `key=value` say a value for every row in them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class FileColumn:
    """Where the values of a column come from in one file; all other columns are the file's own.

    Args:
        name: what the job calls the column.
        column: what the file calls it. None: the file has none, and every row has `value`.
        type: Arrow type, as `arrow_type` reads it: of `value`, or what the file's values are cast
            to. None: as the file has it.
        value: as text that Arrow casts to `type`, bytes in hexadecimal; None is null.
    """

    name: str
    column: str | None = None
    type: str | None = None
    value: str | None = None


def constant(name: str, value: Any, kind: pa.DataType) -> FileColumn:
    """Return a column that has one value in every row.

    Args:
        name: of the column.
        value: what `pa.scalar` takes for the type; None is null.
        kind: an integer, float, boolean, decimal, string, binary, date or timestamp type. A null
            has none, so that it goes with what other files have.

    Raises:
        ValueError: a value of another type.
    """
    if value is None:
        return FileColumn(name)
    text = _type_text(kind)
    if text is None:
        raise ValueError(f"a value of type {kind} can't be the same for all rows")
    scalar = pa.scalar(value, kind)
    if text == "binary":
        return FileColumn(name, type=text, value=scalar.as_py().hex())
    return FileColumn(name, type=text, value=scalar.cast(pa.string()).as_py())


def taken_from(name: str, column: str, held: pa.DataType, declared: pa.DataType) -> FileColumn:
    """Return the file's own column, by the name and as the type that a table declares.

    Only dates and timestamps are cast: of every other type equal values are equal keys and inputs.

    Args:
        name: of the column in the table.
        column: its name in the file.
        held: its type in the file.
        declared: its type in the table.
    """
    cast = _is_moment(declared) and _is_moment(held) and held != declared
    return FileColumn(name, column, _type_text(declared) if cast else None)


def arrow_type(text: str) -> pa.DataType:
    """Read what `str` of an Arrow type says, for the types of `constant`."""
    if found := re.fullmatch(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", text):
        return pa.timestamp(found[1], found[2])
    if found := re.fullmatch(r"decimal(128|256)\((\d+), (-?\d+)\)", text):
        make: Callable[..., pa.DataType] = getattr(pa, f"decimal{found[1]}")
        return make(int(found[2]), int(found[3]))
    return pa.type_for_alias(text)


def named_schema(schema: pa.Schema, columns: Sequence[FileColumn]) -> pa.Schema:
    """Return the schema of a file as the job names its columns."""
    known = {name for column in columns for name in (column.name, column.column)}
    fields = [field for field in schema if field.name not in known]
    for column in columns:
        if column.column is None:
            fields.append(pa.field(column.name, arrow_type(column.type or "null")))
        else:  # one for each that has the name, so that two of one name are seen
            fields += [
                pa.field(column.name, arrow_type(column.type) if column.type else field.type)
                for field in schema
                if field.name == column.column
            ]
    return pa.schema(fields)


def names_in_file(names: Sequence[str], columns: Sequence[FileColumn]) -> list[str]:
    """Return what the file calls the columns of these names, without those that it hasn't."""
    by_name = {column.name: column.column for column in columns}
    found = (by_name.get(name, name) for name in names)
    return list(dict.fromkeys(name for name in found if name is not None))


def named_table(table: pa.Table, names: Sequence[str], columns: Sequence[FileColumn]) -> pa.Table:
    """Return rows of a file with the columns of these names, from those of `names_in_file`.

    A string that all rows have comes as a dictionary, so that it is hashed once.
    """
    if not columns:
        return table.select(names)
    by_name = {column.name: column for column in columns}
    made = []
    for name in names:
        column = by_name.get(name, FileColumn(name, name))
        if column.column is None:
            made.append(_repeated(column, table.num_rows))
            continue
        values = table.column(column.column)
        # Not safe: what is finer than the table's unit is cut off, as other readers do.
        made.append(values.cast(arrow_type(column.type), safe=False) if column.type else values)
    return pa.table(made, names=list(names))


def _repeated(column: FileColumn, rows: int) -> pa.Array:
    kind = arrow_type(column.type or "null")
    if column.value is None:
        return pa.nulls(rows, kind)
    if pa.types.is_binary(kind):
        value = pa.array([bytes.fromhex(column.value)], kind)
    else:
        value = pa.array([column.value], pa.string()).cast(kind)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), value)
    return pa.repeat(value[0], rows)


def _type_text(kind: pa.DataType) -> str | None:
    types = pa.types
    if types.is_large_string(kind) or types.is_string_view(kind):
        kind = pa.string()
    elif (
        types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        kind = pa.binary()
    usable = (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_string(kind)
        or types.is_binary(kind)
        or _is_moment(kind)
    )
    return str(kind) if usable else None


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))
