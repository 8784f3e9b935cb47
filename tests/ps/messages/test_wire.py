import dataclasses
import struct
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ps.messages import wire
from ps.messages.exchange import Message, Refusal, RefusalReason
from ps.messages.pull_push import Contribution, Pull, PullReply, PushReply
from ps.messages.records import (
    Apply,
    ApplyReply,
    DenseNorm,
    DenseNormReply,
    Entry,
    Freeze,
    FreezeReply,
    Record,
    TableEviction,
    Totals,
)
from ps.messages.wire import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    PREFIX,
    MessageTooLargeError,
    WireError,
    decode_body,
    decode_header,
    decode_prefix,
    encode,
)

int64s = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
pairs = st.lists(st.tuples(int64s, int64s), max_size=3).map(tuple)
sizes = st.lists(int64s, max_size=4).map(tuple)
entries = st.builds(Entry, batch_id=int64s, attempt=int64s, weight=floats)
rule_names = st.sampled_from(["least_frequent", "least_recent"])
evictions = st.builds(TableEviction, int64s, int64s, floats, int64s, rule_names)
reasons = st.lists(st.tuples(st.text(max_size=9), int64s), max_size=3).map(tuple)
totals = st.builds(Totals, int64s, int64s, reasons, int64s, int64s)
records = st.builds(
    Record,
    step=int64s, recovery_epoch=int64s, mode_epoch=int64s, divisor=int64s, clock=int64s,
    entries=st.lists(entries, max_size=4).map(tuple),
    scalars=st.lists(st.lists(floats, max_size=5).map(tuple), max_size=3).map(tuple),
    evict=st.lists(evictions, max_size=3).map(tuple), discard=pairs, low_water=int64s,
    oldest_pull_step=int64s, applied_step=int64s, skipped=st.lists(int64s, max_size=3).map(tuple),
    totals=totals,
    routing_version=int64s, dense_factor=floats,
)  # fmt: skip


def arrays(dtype: Any) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(dtype, st.integers(0, 33), elements=hnp.from_dtype(np.dtype(dtype)))


messages = st.one_of(
    st.builds(
        Pull,
        request_id=int64s, recovery_epoch=int64s, routing_version=int64s, at_step=int64s,
        table_sizes=sizes, keys=arrays(np.int64), counts=arrays(np.uint32), dense=st.booleans(),
    ),
    st.builds(
        PullReply,
        request_id=int64s, step=int64s,
        values=arrays(np.float32), dense=arrays(np.float32), admitted=arrays(np.uint8),
    ),
    st.builds(
        Contribution,
        request_id=int64s, recovery_epoch=int64s, mode_epoch=int64s, routing_version=int64s,
        batch_id=int64s, attempt=int64s, samples=int64s, pull_step=int64s, table_sizes=sizes,
        keys=arrays(np.int64), counts=arrays(np.uint32), gradients=arrays(np.float32),
        dense=arrays(np.float32), admitted=arrays(np.uint8),
    ),
    st.builds(PushReply, request_id=int64s),
    st.builds(
        Apply,
        request_id=int64s,
        recovery_epoch=int64s,
        records=st.lists(records, max_size=3).map(tuple),
    ),
    st.builds(ApplyReply, request_id=int64s, step=int64s),
    st.builds(
        DenseNorm,
        request_id=int64s, recovery_epoch=int64s, step=int64s, divisor=int64s,
        entries=st.lists(entries, max_size=4).map(tuple),
    ),
    st.builds(DenseNormReply, request_id=int64s, sums=arrays(np.float64)),
    st.builds(
        Freeze,
        request_id=int64s, recovery_epoch=int64s, number=int64s, step=int64s,
        changed_only=st.booleans(),
    ),
    st.builds(FreezeReply, request_id=int64s, step=int64s),
    st.builds(
        Refusal,
        request_id=int64s, reason=st.sampled_from(get_args(RefusalReason)), text=st.text(),
    ),
)  # fmt: skip


def decode(frame: bytes) -> Message:
    """Decode as a receiver does: prefix, header, body."""
    header_bytes, body_bytes = decode_prefix(frame[: PREFIX.size])
    body_start = PREFIX.size + header_bytes
    header = decode_header(frame[PREFIX.size : body_start], body_bytes)
    body = np.frombuffer(bytearray(frame[body_start:]), np.uint8)
    assert body.size == body_bytes
    return decode_body(header, body)


def frame_of(message: Message, **options: Any) -> bytes:
    return b"".join(encode(message, **options))


def assert_same(got: Message, sent: Message) -> None:
    assert type(got) is type(sent)
    for field in dataclasses.fields(sent):
        a, b = getattr(got, field.name), getattr(sent, field.name)
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()), field.name
        else:
            assert repr(a) == repr(b), field.name  # a damaged weight may be NaN


def pull(**changes: Any) -> Pull:
    keys = np.arange(3, dtype=np.int64)
    return dataclasses.replace(
        Pull(7, 0, 0, -1, (3,), keys, np.ones(3, np.uint32), True), **changes
    )


def header_of(message: Message) -> tuple[list[Any], int]:
    """The unpacked header of a message and the bytes of its body."""
    frame = frame_of(message)
    header_bytes, body_bytes = decode_prefix(frame[: PREFIX.size])
    return msgpack.unpackb(frame[PREFIX.size : PREFIX.size + header_bytes]), body_bytes


@given(messages, st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_message_comes_back_as_it_was_sent(message: Message, compress: bool) -> None:
    assert_same(decode(frame_of(message, compress=compress)), message)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000, 300_000])
@pytest.mark.parametrize("compress", [False, True])
def test_arrays_of_any_length_come_back(n: int, compress: bool) -> None:
    rng = np.random.default_rng(n)
    reply = PullReply(
        1, 2,
        values=rng.normal(size=n).astype(np.float32),
        dense=np.empty(0, np.float32),
        admitted=rng.integers(0, 2, n).astype(np.uint8),
    )  # fmt: skip

    assert_same(decode(frame_of(reply, compress=compress)), reply)


def test_arrays_are_sent_without_a_copy_and_from_any_layout() -> None:
    keys = np.arange(100, dtype=np.int64)
    spread = pull(keys=keys[::2], counts=np.ones(50, np.uint32))

    assert any(np.shares_memory(part, keys) for part in encode(pull(keys=keys))[1:])
    assert_same(decode(frame_of(spread)), spread)


def test_decoded_arrays_can_be_written() -> None:
    for compress in (False, True):
        got = decode(frame_of(pull(), compress=compress))
        assert isinstance(got, Pull)
        got.keys[0] = 5  # as the kernels' types depend on it


# What is refused ----------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@example(b"SMF1" + b"\xff" * 60)
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_no_frame(data: bytes) -> None:
    with pytest.raises((WireError, struct.error)):
        decode_prefix(data[: PREFIX.size])


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_no_header(data: bytes, body_bytes: int) -> None:
    with pytest.raises(WireError):
        decode_header(data, body_bytes)


@given(messages, st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_frame_is_refused_or_is_another_message_of_the_right_types(
    message: Message, compress: bool, data: st.DataObject
) -> None:
    frame = bytearray(frame_of(message, compress=compress))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))

    try:
        header_bytes, body_bytes = decode_prefix(bytes(frame[: PREFIX.size]))
        header = decode_header(bytes(frame[PREFIX.size : PREFIX.size + header_bytes]), body_bytes)
        body = np.zeros(body_bytes, np.uint8)
        got = bytes(frame[PREFIX.size + header_bytes :])[:body_bytes]
        body[: len(got)] = np.frombuffer(got, np.uint8)
        decoded = decode_body(header, body)
    except WireError:
        return
    assert_same(decode(frame_of(decoded)), decoded)


@given(messages, st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_header_is_refused(message: Message, data: st.DataObject) -> None:
    frame = frame_of(message)
    header_bytes, body_bytes = decode_prefix(frame[: PREFIX.size])
    cut = data.draw(st.integers(0, header_bytes - 1))

    with pytest.raises(WireError):
        decode_header(frame[PREFIX.size : PREFIX.size + cut], body_bytes)


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ((b"SMF2", 10, 10), "not a frame"),
        ((b"GET ", 10, 10), "not a frame"),
        ((b"SMF1", MAX_HEADER_BYTES + 1, 0), "over the limit"),
        ((b"SMF1", 2**32 - 1, 0), "over the limit"),
        ((b"SMF1", 10, MAX_BODY_BYTES + 1), "over the limit"),
        ((b"SMF1", 10, 2**64 - 1), "over the limit"),
    ],
)
def test_a_prefix_over_the_limits_is_refused(prefix: tuple[bytes, int, int], text: str) -> None:
    with pytest.raises(WireError, match=text):
        decode_prefix(PREFIX.pack(*prefix))


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ([3], "wrong number of arrays"),
        ([3, 3, 3], "wrong number of arrays"),
        ([4, 3], "its header says"),
        ([-1, 3], "out of range"),
        ([2**62, 3], "out of range"),
        ([MAX_BODY_BYTES, 3], "over the limit"),
        (["3", 3], "out of range"),
        ([3.0, 3], "out of range"),
        ([True, 3], "out of range"),
        (3, "can't be read"),
        (None, "can't be read"),
        ("ab", "out of range"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: Any, text: str) -> None:
    fields, body_bytes = header_of(pull())
    fields[2] = lengths

    with pytest.raises(WireError, match=text):
        decode_header(msgpack.packb(fields), body_bytes)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 9), (0, -1), (0, "0"), (0, None), (0, True), (0, [0]), (1, 0), (1, None), (3, 4), (3, [])],
)
def test_a_header_of_no_known_kind_is_refused(place: int, value: Any) -> None:
    fields, body_bytes = header_of(pull())
    fields[place] = value

    with pytest.raises(WireError, match="can't be read"):
        decode_header(msgpack.packb(fields), body_bytes)


RECORD = Record(
    1, 2, 3, (Entry(4, 5, 0.5),), 6, ((0.1,),),
    evict=(TableEviction(0, 1, 0.5, 64, "least_recent"),), discard=((1, 2),),
)  # fmt: skip
SCALARS: list[tuple[Message, str]] = [
    (message, field.name)
    for message in (
        pull(),
        Contribution(
            1, 2, 3, 4, 5, 6, 7, 8, (0,), np.empty(0, np.int64), np.empty(0, np.uint32),
            np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.uint8),
        ),
        ApplyReply(1, 2),
        DenseNorm(1, 2, 3, (Entry(4, 5, 0.5),), 6),
        DenseNormReply(1, np.ones(2)),
        Freeze(1, 2, 3, 4, changed_only=True),
        FreezeReply(1, 2),
        Refusal(1, "full", "no room"),
    )
    for field in dataclasses.fields(message)
    if not isinstance(getattr(message, field.name), np.ndarray)
]  # fmt: skip


@pytest.mark.parametrize(("message", "name"), SCALARS)
@pytest.mark.parametrize("value", [None, 0.5, "x", [1, "x"], [None], [[0]], 2**63, {}, b"x"])
def test_a_scalar_of_another_type_is_refused_and_named(
    message: Message, name: str, value: Any
) -> None:
    if isinstance(getattr(message, name), str) and value == "x" and name != "reason":
        return  # a legal text
    fields, body_bytes = header_of(message)
    scalars = [
        field.name
        for field in dataclasses.fields(message)
        if not isinstance(getattr(message, field.name), np.ndarray)
    ]
    fields[3][scalars.index(name)] = value

    with pytest.raises(WireError, match=rf"{type(message).__name__}\.{name}|can't be read"):
        decode_header(msgpack.packb(fields), body_bytes)


@pytest.mark.parametrize("place", range(len(dataclasses.fields(Record))))
@pytest.mark.parametrize("value", [None, "x", 2**63, [["x"]], [[0, 1, 2, 3]], [[None, 0, 0.0]]])
def test_a_record_with_a_field_of_another_type_is_refused(place: int, value: Any) -> None:
    fields, _ = header_of(Apply(1, 2, (RECORD,)))
    name = dataclasses.fields(Record)[place].name
    if name == "scalars" and value == [[0, 1, 2, 3]]:
        value = [[0, "x"]]  # for scalars it was legal
    if name == "dense_factor" and value == 2**63:
        value = [0.5]  # so it was for a float
    fields[3][2][0][place] = value

    with pytest.raises(WireError, match=r"Apply\.records"):
        decode_header(msgpack.packb(fields), 0)


def test_a_whole_number_is_a_legal_weight() -> None:
    fields, _ = header_of(Apply(1, 2, (RECORD,)))
    fields[3][2][0][3] = [[4, 5, 1]]

    header = decode_header(msgpack.packb(fields), 0)

    assert header.scalars["records"][0].entries == (Entry(4, 5, 1.0),)
    assert type(header.scalars["records"][0].entries[0].weight) is float


# Limits -------------------------------------------------------------------------------------------


def test_a_compressed_body_larger_than_what_it_would_hold_is_refused_before_it_is_read() -> None:
    header = msgpack.packb([1, True, [2, 0, 0], [1, 2, False]])

    with pytest.raises(WireError, match="a body of"):
        decode_header(header, MAX_BODY_BYTES)


@pytest.mark.parametrize("n", [1, 100, 70_000, 1_000_000])
def test_what_does_not_compress_is_not_taken_for_too_large(n: int) -> None:
    values = np.frombuffer(np.random.default_rng(n).bytes(4 * n), np.float32)
    reply = PullReply(1, 2, values, np.empty(0, np.float32), np.empty(0, np.uint8))

    assert_same(decode(frame_of(reply, compress=True)), reply)


@pytest.mark.parametrize("compress", [False, True])
def test_a_message_over_the_limits_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1000)
    with pytest.raises(MessageTooLargeError, match="Pull would take 1008 bytes, a frame holds"):
        encode(pull(keys=np.zeros(126, np.int64), counts=np.empty(0, np.uint32)), compress=compress)

    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    with pytest.raises(MessageTooLargeError, match="header of a Apply"):
        encode(Apply(1, 2, (RECORD,) * 10))


def test_what_is_no_plain_value_is_not_sent() -> None:
    with pytest.raises(TypeError):
        encode(pull(at_step=np.int64(3)))
