"""Errors about input data: what was wrong, in which file, column, row group and row."""

from functools import partial
from typing import Any


class DataError(ValueError):
    """Input that can't be used.

    Args:
        what: what failed, a clause without a full stop.
        file: path or URL.
        column: name of the Parquet column.
        row_group: position in the file, from 0.
        row: position in the row group, from 0, in the file's order.
        got: what was found against what was expected.
        remedy: what to do about it.
    """

    def __init__(
        self,
        *,
        what: str,
        file: str | None = None,
        column: str | None = None,
        row_group: int | None = None,
        row: int | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.file = file
        self.column = column
        self.row_group = row_group
        self.row = row
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        places = (
            ("file", self.file),
            ("column", self.column),
            ("row group", self.row_group),
            ("row", self.row),
        )
        where = ", ".join(f"{name} {value!r}" for name, value in places if value is not None)
        text = f"{self.what} ({where})" if where else self.what
        if self.got:
            text += f": {self.got}"
        return f"{text}. {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments can't be unpickled by the default rule.
        fields: dict[str, Any] = {
            "what": self.what,
            "file": self.file,
            "column": self.column,
            "row_group": self.row_group,
            "row": self.row,
            "got": self.got,
            "remedy": self.remedy,
        }
        return partial(type(self), **fields), ()


class UnreadableError(DataError):
    """A file or row group that can't be opened or decoded: what `on_bad_file: skip` leaves out."""
