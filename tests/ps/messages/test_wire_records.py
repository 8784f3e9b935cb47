"""Records of large jobs: as many as there are, in messages that a frame holds."""

import pytest

from ps.messages.pull_push import MAX_DISCARDS, MAX_STEP_BATCHES
from ps.messages.records import Apply, DenseNorm, Entry, Record, Totals
from ps.messages.wire import (
    MAX_HEADER_BYTES,
    PREFIX,
    _most_bytes,
    decode_header,
    decode_prefix,
    encode,
    in_messages,
)

LARGE = 2**62
SCALARS = ((0.01,), (0.001, 0.001, 0.9, 0.999, 1e-8))


def entries(count: int) -> tuple[Entry, ...]:
    return tuple(Entry(LARGE + i, LARGE, 1 / 3) for i in range(count))


def record(step: int, num_entries: int = 1, num_discards: int = 0) -> Record:
    return Record(
        step,
        recovery_epoch=1,
        mode_epoch=1,
        entries=entries(num_entries),
        divisor=2048,
        scalars=SCALARS,
        clock=LARGE,
        skipped=tuple(range(-LARGE, num_discards - LARGE)),
        discard=tuple((LARGE + i, LARGE) for i in range(num_discards)),
        low_water=LARGE,
        oldest_pull_step=LARGE,
        applied_step=LARGE,
        totals=Totals(LARGE, LARGE, (("bad_file", LARGE), ("non_finite", LARGE)), LARGE, LARGE),
    )


def received(message: Apply | DenseNorm) -> Apply | DenseNorm:
    (frame,) = encode(message)
    start = PREFIX.size
    header_bytes, body_bytes = decode_prefix(bytes(frame[:start]))
    assert header_bytes <= MAX_HEADER_BYTES
    header = decode_header(bytes(frame[start:]), body_bytes)
    return header.kind(**header.scalars)


@pytest.mark.parametrize(
    ("count", "num_entries", "num_discards"),
    [(1, 1, 0), (16_000, 1, 0), (4_096, 4, 4), (40, 4_096, 4_096)],
)
def test_any_number_of_records_is_sent_in_order(
    count: int, num_entries: int, num_discards: int
) -> None:
    records = tuple(record(step, num_entries, num_discards) for step in range(count))

    got: list[Record] = []
    for message in in_messages(records):
        apply = received(Apply(1, 1, message))
        assert isinstance(apply, Apply)
        got += apply.records

    assert tuple(got) == records


def test_a_record_takes_no_more_than_a_message_is_divided_by() -> None:
    for large in (record(LARGE), record(LARGE, 1000, 1000)):
        (frame,) = encode(Apply(1, 1, (large,)))
        assert len(frame) - PREFIX.size - 24 <= _most_bytes(large)


@pytest.mark.parametrize("num_batches", [30_000, 66_000, 100_000, 1 << 17])
def test_a_step_of_many_batches_is_sent(num_batches: int) -> None:
    large = record(7, num_batches)

    messages = in_messages([record(6), large, record(8)])
    assert [each.step for message in messages for each in message] == [6, 7, 8]
    assert received(Apply(1, 1, (large,))) == Apply(1, 1, (large,))
    norm = DenseNorm(1, 1, 7, large.entries, 2048)
    assert received(norm) == norm


def test_the_largest_step_fits_a_message_with_the_discards_that_a_record_takes() -> None:
    large = record(7, MAX_STEP_BATCHES, MAX_DISCARDS)

    (messages,) = in_messages([large])
    assert received(Apply(1, 1, messages)) == Apply(1, 1, (large,))


def test_no_records_make_no_message() -> None:
    assert in_messages([]) == []


def test_records_that_go_to_several_copies_come_alike_and_others_after_them_too() -> None:
    first, second = (record(6), record(7)), (record(8, 3),)

    for number, records in enumerate((first, first, second, first)):
        message = Apply(number, number + LARGE, records)
        assert received(message) == message
