"""Footers of Parquet files: what can be read of a file, and whether it is damaged."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.storage import open_filesystem
from worker.errors import DataError, UnreadableError

_TAIL_BYTES = 1 << 16
_MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_WIDE = (16, "None")  # a 128-bit integer's length in bytes and logical type
_UNREADABLE_REMEDY = "Write the file again, leave it out, or set data.on_bad_file to skip"


@dataclass(frozen=True, slots=True)
class Footer:
    """What the footer of a Parquet file says.

    Args:
        size: of the file in bytes.
        digest: sha256 of the footer, in hexadecimal.
        metadata: as pyarrow has it.
        schema: the columns as Arrow types, as they will be decoded.
        row_group_rows: rows of each row group.
        byte_columns: paths of the leaf columns of byte strings.
    """

    size: int
    digest: str
    metadata: pq.FileMetaData
    schema: pa.Schema
    row_group_rows: tuple[int, ...]
    byte_columns: tuple[str, ...]


def read_footer(source: pa.NativeFile, path: str) -> Footer:
    """Read the footer of an open Parquet file, mostly by one request.

    Raises:
        UnreadableError: the file is cut off, damaged or no Parquet file.
        DataError: it is intact, but encrypted or of a type that can't be read.
    """
    try:
        size = source.size()
        tail = source.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] == _MAGIC_ENCRYPTED:
            raise DataError(
                what="a file is encrypted", file=path, remedy="Write it without encryption"
            )
        if tail[-4:] != _MAGIC or length > size:
            raise ValueError(f"its {size} bytes don't end with a Parquet footer")
        if length > len(tail):
            tail = source.read_at(length, size - length)
        return _parsed(tail[-length:], size)
    except DataError:
        raise
    except pa.ArrowNotImplementedError as error:
        raise _unsupported(tail[-length:], path, error) from error
    # pyarrow raises UnicodeDecodeError, a ValueError, where a name is damaged.
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable("a file is cut off, damaged or no Parquet file", path, error) from error


def _parsed(footer: bytes, size: int) -> Footer:
    # As the reader opens it, which knows more types than the metadata alone: UUID, JSON.
    with pq.ParquetFile(pa.BufferReader(_MAGIC + footer)) as file:
        metadata, schema = file.metadata, file.schema_arrow
    rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
        raise ValueError(f"its row groups have {sum(rows)} rows, the file {metadata.num_rows}")
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    paths = [(leaf.path, leaf.physical_type) for leaf in leaves]
    return Footer(
        size=size,
        digest=hashlib.sha256(footer).hexdigest(),
        metadata=metadata,
        schema=schema,
        row_group_rows=rows,
        byte_columns=tuple(path for path, kind in paths if kind == "BYTE_ARRAY"),
    )


def _unsupported(footer: bytes, path: str, error: Exception) -> DataError:
    """The error for an intact file that pyarrow doesn't open for the type of one of its columns."""
    column, got = None, str(error)
    if "more than 64 bits" in got:
        got = "128-bit integer"
        # Arrow's schema, kept beside Parquet's own, is what has the type: look without it.
        own = pq.read_metadata(pa.BufferReader(_MAGIC + footer.replace(b"ARROW:", b"-----:")))
        leaves = [own.schema.column(i) for i in range(own.num_columns)]
        wide = [leaf.path for leaf in leaves if (leaf.length, str(leaf.logical_type)) == _WIDE]
        column = ", ".join(name.split(".")[0] for name in wide) or None
    return DataError(
        what="a column has a type that can't be read",
        file=path,
        column=column,
        got=got,
        remedy="The file can't be opened for any of its columns: write it again without this one,"
        " or cast it, to 64 bits say (Polars: .cast(pl.Int64))",
    )


def unreadable(
    what: str, path: str, error: Exception, row_group: int | None = None
) -> UnreadableError:
    """Return the error for a file or row group that a library could not read."""
    detail = (str(error).splitlines() or [""])[0]
    return UnreadableError(
        what=what,
        file=path,
        row_group=row_group,
        got=detail or type(error).__name__,
        remedy=_UNREADABLE_REMEDY,
    )


def open_source(path: str) -> pa.NativeFile:
    """Open a file for reading at any position.

    Raises:
        UnreadableError: it can't be opened.
        DataError: it may not be read, which is no damage.
    """
    try:
        filesystem, inner = open_filesystem(path)
        return filesystem.open_input_file(inner)
    except PermissionError as error:
        raise DataError(
            what="a file may not be read",
            file=path,
            got=str(error),
            remedy="Give the job the right to read it, or leave the file out",
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise unreadable("a file can't be opened", path, error) from error
