"""What messages of a broker hold: each that can't be used is told apart, and harms no other."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from mock_kafka import arrow_message

import worker.data.messages
from worker.data.messages import (
    Decoded,
    MessageDecoder,
    arrow_decoder,
    avro_decoder,
    column_type,
    json_decoder,
)

COLUMNS = {"label": "float32", "a": "int64", "tags": "list<string>"}


def rows_of(found: Decoded) -> list[dict[str, Any]]:
    return [row for part in found.parts for row in part.table.to_pylist()]


def row(**values: Any) -> dict[str, Any]:
    return {"label": None, "a": None, "tags": None, **values}


BAD_JSON = [
    b"null", b"", b"  ", b"5", b"[1]", b"true", b"\x00\xff", b'{"a":1', b'{"a":1}{"a":2}',
    b'{"a":1} null', b'null {"a":1}', b'{"a":1,"a":2}', b'{"a":1.5}', b'{"a":"1"}', b'{"tags":"x"}',
    b'{"a":99999999999999999999}', b'{"tags":["\xff"]}', b'{"label":1e400}', b'{"a":1}\x00',
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JSON)
def test_a_json_message_that_is_no_row_is_refused_beside_others(bad: bytes) -> None:
    good = [b'{"a": %d}' % number for number in range(5)]

    for place in (0, 3, 5):
        found = json_decoder(COLUMNS)([*good[:place], bad, *good[place:]])

        assert list(found.refused) == [place]
        assert found.refused[place]
        assert [each["a"] for each in rows_of(found)] == [0, 1, 2, 3, 4]
        (part,) = found.parts
        assert part.messages.tolist() == [n for n in range(6) if n != place]


def test_json_rows_have_the_declared_columns_whatever_else_they_say() -> None:
    messages = [
        b'{"tags": ["x", "y"],\n "a": -5, "more": {"deep": [null]}}\n',
        b' {"label": 1}',
        json.dumps({"a": 2**62, "label": 0.5, "tags": []}).encode(),
    ]

    found = json_decoder(COLUMNS)(messages)

    assert found.refused == {}
    assert rows_of(found) == [
        row(tags=["x", "y"], a=-5),
        row(label=1.0),
        row(a=2**62, label=0.5, tags=[]),
    ]


def test_nothing_but_bad_messages_is_no_part() -> None:
    found = json_decoder(COLUMNS)([b"x"] * 3)

    assert (found.parts, sorted(found.refused)) == ([], [0, 1, 2])


@pytest.mark.parametrize("text", ["int", "list<list<int8>>", "list<>", "", "float64 "])
def test_a_type_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="float32"):
        column_type(text)


SCHEMA = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "label", "type": "float"},
        {"name": "a", "type": ["null", "long"]},
        {"name": "n", "type": "int"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}


def avro_file(folder: Path, schema: Any = SCHEMA) -> str:
    (folder / "click.avsc").write_text(json.dumps(schema))
    return str(folder / "click.avsc")


def avro(values: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    fastavro.schemaless_writer(sink, fastavro.parse_schema(SCHEMA), values)
    return sink.getvalue()


def test_avro_records_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    click = {"label": 0.5, "a": None, "n": 3, "tags": ["x"]}
    whole = avro(click)
    too_large = avro({**click, "n": 2**31 - 1}).replace(
        b"\xfe\xff\xff\xff\x0f", b"\xfe" * 9 + b"\x01"
    )
    endless = whole[:4] + b"\x02" + whole[5:6] + struct.pack("<Q", 2**63 - 1)

    found = avro_decoder(avro_file(tmp_path))(
        [whole, whole[:-3], whole + b"x", b"", too_large, endless, avro({**click, "a": 7})]
    )

    assert sorted(found.refused) == [1, 2, 3, 4, 5]
    assert all(found.refused.values())
    assert rows_of(found) == [click, {**click, "a": 7}]
    assert found.parts[0].table.schema.field("n").type == pa.int32()


def test_confluents_header_is_passed_over_and_must_be_one(tmp_path: Path) -> None:
    whole = avro({"label": 0.5, "a": 1, "n": 3, "tags": []})

    found = avro_decoder(avro_file(tmp_path), confluent=True)(
        [b"\0\0\0\0\x07" + whole, b"\x01\0\0\0\x07" + whole, b"\0"]
    )

    assert sorted(found.refused) == [1, 2]
    assert len(rows_of(found)) == 1


@pytest.mark.parametrize(
    "schema",
    [
        "long",
        {"type": "record", "name": "A", "fields": [{"name": "x", "type": "nothing"}]},
        {"type": "record", "name": "A", "fields": [{"name": "x", "type": ["int", "string"]}]},
        {"type": "record", "name": "A", "fields": 5},
    ],
)
def test_a_schema_of_no_rows_is_refused(tmp_path: Path, schema: Any) -> None:
    with pytest.raises(ValueError, match=r"click\.avsc is no Avro schema"):
        avro_decoder(avro_file(tmp_path, schema))


def arrow() -> MessageDecoder:
    return arrow_decoder(lambda schema: None if "a" in schema.names else "it lacks a")


def test_arrow_messages_of_one_schema_are_one_part() -> None:
    one = pa.table({"a": [1, 2]})
    other = pa.table({"a": [3], "b": ["x"]})
    messages = [one, one.slice(0, 0), other, pa.table({"b": [1]}), other, one]

    found = arrow()([arrow_message(each) for each in messages])

    assert found.refused == {3: "it lacks a"}
    assert [part.table.num_rows for part in found.parts] == [2, 2, 2]
    assert [part.messages.tolist() for part in found.parts] == [[0, 0], [2, 4], [5, 5]]


def test_damaged_arrow_messages_are_refused() -> None:
    whole = arrow_message(pa.table({"a": [1, 2], "s": ["x", "y"]}))
    rng = np.random.default_rng(0)
    damaged = [b"", b"x", whole[:40], whole[: len(whole) // 2], whole[8:]]
    for _ in range(300):
        bytes_of = bytearray(whole)
        bytes_of[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(bytes_of))

    found = arrow()([*damaged, whole])

    assert {0, 1, 2, 3, 4} <= set(found.refused)
    assert len(damaged) not in found.refused


def test_what_would_become_too_large_is_refused_before_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"a": pa.array(np.zeros(100_000, np.int64))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    small = sink.getvalue()
    assert small.size < 10_000
    monkeypatch.setattr(worker.data.messages, "MAX_MESSAGE_BYTES", 100_000)
    monkeypatch.setattr(worker.data.messages, "MAX_MESSAGE_ROWS", 1_000_000)
    nothing = pa.table({"a": pa.nulls(2_000_000)})

    found = arrow()([bytes(small), arrow_message(nothing)])

    assert "800,0" in found.refused[0]
    assert "2,000,000 rows" in found.refused[1]
