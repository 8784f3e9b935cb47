"""What the messages of a broker hold: rows as JSON or Avro, or batches of them as Arrow.

Messages come from whoever may write to the broker, so one that can't be used is told from the
others: it takes none of these with it, and nothing larger than was agreed is made of it.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pa_json

from ps.checkpoint.record_batches import inflated_bytes

MessageFormat = Literal["arrow", "json", "avro"]

MAX_MESSAGE_ROWS = 1 << 20
MAX_MESSAGE_BYTES = 256 << 20
"""Of a message once nothing is compressed any more."""

_BLANKS = b" \t\r\n"
_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "string": pa.string(),
    **{name: getattr(pa, name)() for name in ("int8", "int16", "int32", "int64")},
    **{name: getattr(pa, name)() for name in ("uint8", "uint16", "uint32", "uint64")},
    **{name: getattr(pa, name)() for name in ("float32", "float64")},
}
COLUMN_TYPES = f"{', '.join(_TYPES)}, or list<TYPE>"
_CONFLUENT = 5  # bytes before the row: a zero, and the number of its schema


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of some of the messages.

    Args:
        table: the rows.
        messages: int64[n], which message each came from, in their order.
    """

    table: pa.Table
    messages: npt.NDArray[np.int64]


@dataclass(slots=True)
class Decoded:
    """What messages hold: their rows, in order, one part for each stretch of one schema.

    Args:
        refused: the messages that can't be used, and why.
    """

    parts: list[Rows] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


MessageDecoder = Callable[[Sequence[bytes]], Decoded]


def column_type(text: str) -> pa.DataType:
    """Return the type of a declared column; raises ValueError where there is none such."""
    inner = text.removeprefix("list<").removesuffix(">")
    if text == f"list<{inner}>" and inner in _TYPES:
        return pa.list_(_TYPES[inner])
    if text not in _TYPES:
        raise ValueError(f"must be one of {COLUMN_TYPES}, got {text!r}")
    return _TYPES[text]


def json_decoder(columns: Mapping[str, str]) -> MessageDecoder:
    """Return what reads messages of one JSON object each.

    Args:
        columns: the type of each column, as `column_type` takes it; other keys are left out, and
            those that are missing are null.
    """
    schema = pa.schema([(name, column_type(text)) for name, text in columns.items()])

    def decode(messages: Sequence[bytes]) -> Decoded:
        found = Decoded()
        lines: dict[int, bytes] = {}
        for number, message in enumerate(messages):
            line = message.strip(_BLANKS)
            if line.startswith(b"{"):
                # Line feeds within a row can only be blanks.
                lines[number] = line.replace(b"\n", b" ").replace(b"\r", b" ")
            else:
                # pyarrow 26 does not survive a null in the place of the first row.
                found.refused[number] = "it is no JSON object"
        _add_rows(found, list(lines.items()), lambda rows: _read_json(rows, schema))
        return found

    return decode


def _read_json(lines: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    data = b"\n".join(lines)
    return pa_json.read_json(
        pa.BufferReader(data),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pa_json.ParseOptions(
            explicit_schema=schema,
            newlines_in_values=False,
            unexpected_field_behavior="ignore",
        ),
    )


def _add_rows(
    found: Decoded, rows: Sequence[tuple[int, Any]], read: Callable[[list[Any]], pa.Table]
) -> None:
    """Read the rows of messages together; where that fails halves of them, down to a wrong one."""
    tables: list[pa.Table] = []

    def add(some: Sequence[tuple[int, Any]]) -> None:
        try:
            table = read([row for _, row in some])
            if table.num_rows != len(some):
                raise ValueError(f"it holds {table.num_rows} rows")
            table.validate(full=True)
        except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
            if len(some) == 1:
                found.refused[some[0][0]] = _first_line(error)
                return
            middle = len(some) // 2
            add(some[:middle])
            add(some[middle:])
        else:
            tables.append(table)

    if rows:
        add(rows)
    if tables:
        good = [number for number, _ in rows if number not in found.refused]
        found.parts.append(Rows(pa.concat_tables(tables), np.array(good, np.int64)))


def avro_decoder(schema_file: str, *, confluent: bool = False) -> MessageDecoder:
    """Return what reads messages of one Avro record each, without a header of its own.

    Args:
        schema_file: what the records were written with, a record as JSON (`.avsc`).
        confluent: whether five bytes stand before each, as Confluent's serializers write them; the
            number of the schema there is not looked at.

    Raises:
        ValueError: the schema can't be used.
        OSError: it can't be read.
        ImportError: fastavro is not installed.
    """
    import fastavro
    from fastavro.schema import SchemaParseException, UnknownType

    try:
        parsed = fastavro.parse_schema(fastavro.schema.load_schema(str(Path(schema_file))))
        schema = _arrow_schema(parsed)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{schema_file} is no Avro schema of rows: {error}") from error

    def row_of(message: bytes) -> dict[str, Any]:
        if confluent and (len(message) < _CONFLUENT or message[0] != 0):
            raise ValueError("it does not begin as Confluent's serializers begin")
        source = io.BytesIO(message)
        source.seek(_CONFLUENT if confluent else 0)
        row = fastavro.schemaless_reader(source, parsed, None)
        left = len(message) - source.tell()
        if left:
            raise ValueError(f"{left} bytes follow its row")
        assert isinstance(row, dict), "the schema is a record"
        return row

    def decode(messages: Sequence[bytes]) -> Decoded:
        found, rows = Decoded(), []
        for number, message in enumerate(messages):
            try:
                rows.append((number, row_of(message)))
            except Exception as error:  # of a damaged row fastavro raises whatever comes of it
                found.refused[number] = _first_line(error) or type(error).__name__
        _add_rows(found, rows, lambda some: pa.Table.from_pylist(some, schema))
        return found

    return decode


def _arrow_schema(parsed: Any) -> pa.Schema:
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise ValueError("it must be a record")
    return pa.schema([(each["name"], _arrow_type(each["type"])) for each in parsed["fields"]])


_AVRO: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
}


def _arrow_type(kind: Any) -> pa.DataType:
    if isinstance(kind, list):  # a union: with null, of one other type
        others = [each for each in kind if each != "null"]
        if len(others) == 1:
            return _arrow_type(others[0])
    if isinstance(kind, dict) and "logicalType" not in kind:
        if kind.get("type") == "array":
            return pa.list_(_arrow_type(kind["items"]))
        return _arrow_type(kind.get("type"))
    if isinstance(kind, str) and kind in _AVRO:
        return _AVRO[kind]
    raise ValueError(f"a field has the type {kind}; it may be {', '.join(_AVRO)} or an array")


def arrow_decoder(check: Callable[[pa.Schema], str | None]) -> MessageDecoder:
    """Return what reads messages of one Arrow IPC stream each.

    Args:
        check: says why messages of a schema can't be used; None: they can.
    """

    def decode(messages: Sequence[bytes]) -> Decoded:
        found = Decoded()
        tables: list[pa.Table] = []
        numbers: list[int] = []

        def end() -> None:
            if tables:
                lengths = [table.num_rows for table in tables]
                origins = np.repeat(np.array(numbers, np.int64), lengths)
                found.parts.append(Rows(pa.concat_tables(tables), origins))
                tables.clear()
                numbers.clear()

        for number, message in enumerate(messages):
            try:
                table = _read_arrow(message)
                reason = check(table.schema)
            except (pa.ArrowException, ValueError, OSError, EOFError) as error:
                reason = _first_line(error) or type(error).__name__
            if reason is not None:
                found.refused[number] = reason
                continue
            if tables and not tables[0].schema.equals(table.schema):
                end()
            tables.append(table)
            numbers.append(number)
        end()
        return found

    return decode


def _read_arrow(message: bytes) -> pa.Table:
    """Return the rows of an IPC stream; raises ValueError where they are too many or too large."""
    data = pa.py_buffer(message)
    rows = total = 0
    for part in pa.ipc.MessageReader.open_stream(data):
        if part.type not in ("schema", "record batch", "dictionary"):
            raise ValueError(f"it has an Arrow message of type {part.type!r}")
        if part.type != "schema":
            length, held = inflated_bytes(part)
            rows, total = rows + length, total + held
            if rows > MAX_MESSAGE_ROWS or total > MAX_MESSAGE_BYTES:
                raise ValueError(
                    f"it has {rows:,} rows of {total:,} bytes, at most {MAX_MESSAGE_ROWS:,} of"
                    f" {MAX_MESSAGE_BYTES:,} are read; write smaller messages"
                )
    with pa.ipc.open_stream(data) as reader:
        table = reader.read_all().replace_schema_metadata(None)
    table.validate(full=True)
    return table


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
