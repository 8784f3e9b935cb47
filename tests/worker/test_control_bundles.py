import random
from dataclasses import replace
from typing import get_args

import msgpack
import numpy as np
import pytest

from ps.messages.wire import WireError
from runtime.process_figures import NOT_MEASURED, ProcessFigures
from worker.control_bundles import (
    MAX_REPORTS,
    pack_grants,
    pack_reports,
    unpack_grants,
    unpack_reports,
)
from worker.data.arrived import BatchRows
from worker.protocol import (
    Evaluation,
    Finished,
    Grant,
    Outcome,
    Report,
    SkipReason,
    StageName,
    Token,
    TokenKind,
)


def test_any_reports_come_as_they_were_sent() -> None:
    rng = random.Random(1)
    for _ in range(50):
        reports = [_report(rng, worker) for worker in range(rng.randrange(12))]

        assert unpack_reports(pack_reports(reports)) == reports


def test_any_grants_come_as_they_were_sent() -> None:
    rng = random.Random(2)
    for _ in range(50):
        grants = [_grant(rng) for _ in range(rng.randrange(12))]

        assert unpack_grants(pack_grants(grants)) == grants


def test_scores_and_figures_come_with_whom_they_are_of() -> None:
    token = Token(1, 2, 0, -1)
    scores = Evaluation(np.array([3, 9], np.int32), np.array([True, False]), 1.5)
    figures = ProcessFigures(peak_rss_bytes=7, stage_seconds={"read": 0.5})
    reports = [
        Report(0, 0, 1, finished=(Finished(token, "done"),)),
        Report(1, 0, 1, finished=(Finished(token, "done"), Finished(token, "done", 0, 5))),
        Report(2, 0, 1, process=figures),
    ]
    ended = reports[1].finished
    reports[1] = replace(reports[1], finished=(ended[0], replace(ended[1], evaluation=scores)))

    first, second, third = unpack_reports(pack_reports(reports))

    assert first == reports[0]
    assert third == reports[2]
    assert second.finished[0].evaluation is None
    came = second.finished[1].evaluation
    assert came is not None
    assert came.bins.tolist() == [3, 9]
    assert came.positive.tolist() == [True, False]


def test_rows_come_with_the_grant_that_they_are_of() -> None:
    rows = (BatchRows(7, ((0, 1, 2, 3),), (), 0),)
    grants = [Grant(1), Grant(2, (Token(0, 7, 0, -1),), rows=rows)]

    assert unpack_grants(pack_grants(grants)) == grants


def _fields() -> list[object]:
    token = Token(1, 2, 0, -1)
    report = Report(0, 0, 1, (token.identity,), (Finished(token, "done"),))
    fields: list[object] = msgpack.unpackb(pack_reports([report]))
    return fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, 2),  # more reports than there are numbers
        (0, -1),
        (0, MAX_REPORTS + 1),
        (0, 1 << 40),
        (0, True),
        (1, 0),  # a token less than the report says
        (2, 2),
        (3, b"1234567"),
        (3, "text"),
        (3, b"\xff" * 8 * 26),  # counts below 0
        (4, b""),
        (4, b"\0" * 8 * 5),
        (5, [[0, [b"123"]]]),
        (5, 3),
        (6, [[0]]),
    ],
)
def test_what_is_no_message_of_reports_is_refused(field: int, value: object) -> None:
    fields = _fields()
    fields[field] = value

    with pytest.raises(WireError):
        unpack_reports(msgpack.packb(fields))


@pytest.mark.parametrize("code", [-1, 2, 99])
def test_a_name_that_nobody_knows_is_refused(code: int) -> None:
    fields = _fields()
    ints = np.frombuffer(fields[3], np.int64).copy()  # type: ignore[call-overload]
    ints[9] = code  # the kind of the token that it holds
    fields[3] = ints.tobytes()

    with pytest.raises(WireError):
        unpack_reports(msgpack.packb(fields))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", msgpack.packb({"a": 1}), b"\x95" * 3])
def test_noise_is_refused(body: bytes) -> None:
    for unpack in (unpack_reports, unpack_grants):
        with pytest.raises(WireError):
            unpack(body)


def _token(rng: random.Random) -> Token:
    kind = rng.choice(get_args(TokenKind))
    return Token(_number(rng), _number(rng), rng.randrange(9), rng.choice([-1, 7]), 3, kind)


def _number(rng: random.Random) -> int:
    return rng.choice([0, 1, rng.randrange(1 << 20), (1 << 63) - 1])


def _finished(rng: random.Random) -> Finished:
    return Finished(
        _token(rng),
        rng.choice(get_args(Outcome)),
        samples=_number(rng),
        skipped=_number(rng),
        reason=rng.choice([None, *get_args(SkipReason)]),
        loss_sum=rng.random(),
        pull_step=_number(rng),
        seconds=rng.random(),
        started_at=1.7e9 + rng.random(),
        buffer_bytes=_number(rng),
    )


def _report(rng: random.Random, worker: int) -> Report:
    figures = ProcessFigures(cpu_seconds=rng.random(), stage_seconds={"pull": 1.0})
    return Report(
        worker,
        rng.randrange(3),
        _number(rng),
        held=tuple(_token(rng).identity for _ in range(rng.randrange(4))),
        finished=tuple(_finished(rng) for _ in range(rng.randrange(3))),
        want=rng.randrange(5),
        waiting=rng.random() < 0.5,
        process=rng.choice([NOT_MEASURED, figures]),
        recovery_epoch=rng.randrange(4),
        stage=rng.choice(get_args(StageName)),
    )


def _grant(rng: random.Random) -> Grant:
    return Grant(
        _number(rng),
        tuple(_token(rng) for _ in range(rng.randrange(3))),
        tuple(_token(rng).identity for _ in range(rng.randrange(3))),
        rng.random() < 0.5,
        rng.choice([-1, 12]),
        rng.randrange(4),
    )
