import socket
import struct
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from ps.messages.wire import WireError
from runtime.process_figures import ProcessFigures
from worker import control_wire
from worker.control_wire import receive_grant, receive_report, send_message
from worker.protocol import Evaluation, Finished, Grant, Report, SegmentScores, TaskScores, Token

TOKEN = Token(3, 12, 1, at_step=-1, mode_epoch=2)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.settimeout(5)
    yield one, other
    one.close()
    other.close()


def test_a_report_comes_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    report = Report(
        worker=2,
        incarnation=1,
        sequence=9,
        held=(TOKEN.identity, ("eval", 4, 0)),
        finished=(Finished(TOKEN, "skipped", skipped=5, reason="bad_file", loss_sum=0.25),),
        want=1,
        waiting=True,
        process=ProcessFigures(peak_rss_bytes=7, stage_seconds={"read": 0.5, "push": 1.0}),
    )

    send_message(pair[0], report)

    assert receive_report(pair[1]) == report


def test_the_arrays_of_an_evaluation_come_as_they_were_sent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    weights = np.array([0.5, 0, 3], np.float32)
    segments = SegmentScores(
        ("a", "\u00e4" * 60), np.array([1, 2, 0], np.uint8), np.ones(3), np.arange(3.0)
    )
    bins, positive = np.array([0, 7, 65535], np.int32), np.array([True, False, True])
    groups = np.array([-(2**63), 7, 2**63 - 1])
    other = TaskScores(bins[:1], positive[:1], 0.5, groups=groups[:1], segments=segments)
    sent = Evaluation(bins, positive, 1.5, 2.5, weights, groups, segments, (other,))
    send_message(pair[0], Report(0, 0, 1, finished=(Finished(TOKEN, "done", evaluation=sent),)))

    received = receive_report(pair[1]).finished[0].evaluation

    assert received is not None
    assert received.bins.dtype == np.int32
    assert np.array_equal(received.bins, sent.bins)
    assert received.positive.dtype == np.bool_
    assert np.array_equal(received.positive, sent.positive)
    assert received.log_loss_sum == sent.log_loss_sum
    assert received.probability_sum == sent.probability_sum
    assert received.weights is not None
    assert received.weights.tobytes() == weights.tobytes()
    assert received.segments is not None
    assert received.segments.names == ("a", "\u00e4" * 60)
    assert received.segments.of.tolist() == [1, 2, 0]
    assert received.segments.probability_sums.tolist() == [0, 1, 2]
    assert received.groups is not None
    assert received.groups.tolist() == groups.tolist()
    assert [each.bins.tolist() for each in received.others] == [[0]]
    assert received.others[0].segments is not None
    assert received.others[0].segments.of.tolist() == [1, 2, 0]
    assert received.others[0].groups is not None
    assert received.others[0].weights is None


def test_a_grant_comes_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    grant = Grant(7, tokens=(TOKEN,), revoked=(("train", 1, 0),), stop=True, read_from=3)

    send_message(pair[0], grant)

    assert receive_grant(pair[1]) == grant


def frame(body: bytes, magic: bytes = b"SMC1", nbytes: int | None = None) -> bytes:
    return struct.pack("<4sI", magic, len(body) if nbytes is None else nbytes) + body


@pytest.mark.parametrize(
    "sent",
    [
        frame(b"", magic=b"HTTP"),
        frame(b"", nbytes=control_wire.MAX_BYTES + 1),
        frame(b"\xc1"),
        frame(msgpack.packb([1, 2])),
        frame(msgpack.packb([1, [], [], False, 5, 6, 7])),
        frame(msgpack.packb(["one", [], [], False, 0])),
        frame(msgpack.packb([1, [[0, 0, 0, 0, 0, "test"]], [], False, 0, 0])),
    ],
)
def test_what_is_no_grant_is_refused(
    pair: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    pair[0].sendall(sent)

    with pytest.raises(WireError):
        receive_grant(pair[1])


@pytest.mark.parametrize("bins", [b"\x00" * 3, "text", [1]])
def test_an_array_that_is_not_of_its_type_is_refused(
    pair: tuple[socket.socket, socket.socket], bins: object
) -> None:
    token = [3, 12, 1, -1, 2, "train"]
    finished = [
        token,
        "done",
        1,
        0,
        None,
        0.0,
        0,
        0.0,
        0.0,
        0,
        [bins, b"\x00", 0.0, 0.0, None, None, None, []],
    ]
    pair[0].sendall(
        frame(msgpack.packb([0, 0, 1, [], [finished], 0, False, [0, 0, 0, 0.0, {}], 0, "none"]))
    )

    with pytest.raises(WireError, match="bytes of int32"):
        receive_report(pair[1])


def test_what_would_be_over_the_limit_is_not_sent(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_wire, "MAX_BYTES", 10)

    with pytest.raises(ValueError, match="a frame holds 10"):
        send_message(pair[0], Report(0, 0, 1, held=(TOKEN.identity,)))


@pytest.mark.parametrize(
    "body",
    [
        msgpack.packb([0] * ((1 << 14) + 1)),
        msgpack.packb([0, 0, 1, [], [], 0, False, 0, 0, 0, 0.0, {str(i): 0.0 for i in range(257)}]),
        msgpack.packb(["x" * 257]),
        msgpack.packb([msgpack.ExtType(1, b"x")]),
        b"\xdd" + struct.pack(">I", 2**32 - 1),
    ],
)
def test_lists_longer_than_any_report_has_are_refused(
    pair: tuple[socket.socket, socket.socket], body: bytes
) -> None:
    pair[0].sendall(struct.pack("<4sI", b"SMC1", len(body)) + body)

    with pytest.raises(WireError, match="exceeds"):
        receive_report(pair[1])
