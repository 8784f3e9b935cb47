"""The columns of a table, and where each file of it has their values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from runtime.near_names import near_name
from worker.data.file_columns import FileColumn, constant, taken_from
from worker.errors import DataError


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column as its table declares it.

    Args:
        type: as Arrow has it.
        find: gives the position of the column in the schema of a file; None where it has none.
        default: of every row in files without the column.
    """

    type: pa.DataType
    find: Callable[[pa.Schema], int | None]
    default: Any = None


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of one version of a table, by name."""

    table: str
    columns: Mapping[str, TableColumn]

    def in_file(
        self,
        path: str,
        schema: pa.Schema,
        names: Sequence[str],
        *,
        values: Mapping[str, Any] | None = None,
        missing: Mapping[str, Any] | None = None,
    ) -> tuple[FileColumn, ...]:
        """Return the columns of these names that are not the file's own under the same name.

        Args:
            path: of the file, for messages.
            schema: of the file.
            names: that are wanted.
            values: by name, of all rows of the file, whatever the file has.
            missing: by name, of all rows, where the file lacks the column.

        Raises:
            DataError: the table has no such column, or its value has no usable type.
        """
        found = (self._column(path, schema, n, values or {}, missing or {}) for n in names)
        return tuple(c for c in found if c != FileColumn(c.name, c.name))

    def _column(
        self,
        path: str,
        schema: pa.Schema,
        name: str,
        values: Mapping[str, Any],
        missing: Mapping[str, Any],
    ) -> FileColumn:
        column = self.columns.get(name)
        if column is None:
            near = near_name(name, self.columns)
            raise DataError(
                what="the table lacks a column",
                file=self.table,
                column=name,
                got=f"its {len(self.columns)} columns have no such name"
                + (f", but {near!r}" if near else ""),
                remedy="Correct the names in the job's data section",
            )
        try:
            if name in values:
                return constant(name, values[name], column.type)
            at = column.find(schema)
            if at is None:
                return constant(name, missing.get(name, column.default), column.type)
        except ValueError as error:
            raise DataError(
                what="a column of a table can't be read",
                file=path,
                column=name,
                got=str(error),
                remedy="Leave the column out",
            ) from error
        own = schema.field(at)
        return taken_from(name, own.name, own.type, column.type)


def by_field_id(
    number: int, names: Sequence[str] | None = None
) -> Callable[[pa.Schema], int | None]:
    """Find a column by the field id that its file has for it.

    In a file without any ids it is found by `names`; raises ValueError where these are None.
    """

    def find(schema: pa.Schema) -> int | None:
        ids = [_field_id(field) for field in schema]
        if number in ids:
            return ids.index(number)
        if any(found is not None for found in ids):
            return None
        if names is None:
            raise ValueError("its columns have no field ids, and the table says no names for them")
        return by_name(*names)(schema)

    return find


def by_name(*names: str) -> Callable[[pa.Schema], int | None]:
    """Find a column by the first of some names that a file has."""

    def find(schema: pa.Schema) -> int | None:
        return next((schema.names.index(name) for name in names if name in schema.names), None)

    return find


def _field_id(field: pa.Field) -> int | None:
    """Return the field id of a Parquet column."""
    text = (field.metadata or {}).get(b"PARQUET:field_id")
    return None if text is None else int(text)
