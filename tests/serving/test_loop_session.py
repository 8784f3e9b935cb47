"""A session that computes in the thread of the loop."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from served_jobs import SavedModel

from serving import Model
from serving.calls import Answer, Call
from serving.errors import OverloadError
from serving.loop_session import LoopSession
from serving.session import SessionOptions

ROW = {"d1": 1.0, "d2": 2.0, "a": 3, "b": 4, "tags": [5, 6]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    job = SavedModel("plain", tmp_path_factory.mktemp("loop") / "run")
    job.train(2)
    job.cut()
    with Model.open(job.run) as opened:
        yield opened


def call_of(rows: int = 1, seconds: float = 60.0) -> Call:
    body = json.dumps({"instances": [ROW] * rows}).encode()
    return Call("rows", body, None, time.monotonic() + seconds)


def run(
    model: Model, test: Callable[[LoopSession], Coroutine[Any, Any, None]], **options: Any
) -> None:
    session = LoopSession(model.current, SessionOptions(name="m", **options))
    try:
        asyncio.run(test(session))
    finally:
        session.close()
    assert not session.alive


def test_requests_that_have_come_are_computed_together_by_the_loop(model: Model) -> None:
    batches: list[int] = []
    answers: list[tuple[Answer, int]] = []

    async def test(session: LoopSession) -> None:
        compute = session._computing.compute
        session._computing.compute = lambda found: batches.append(len(found)) or compute(found)
        for rows in (1, 3):
            session.submit(
                call_of(rows), lambda answer: answers.append((answer, threading.get_ident()))
            )
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(model, test)

    assert batches == [2]
    assert [(answer.status, answer.rows) for answer, _ in answers] == [(200, 1), (200, 3)]
    assert {thread for _, thread in answers} == {threading.get_ident()}
    expected = model.predict([ROW]).values
    assert json.loads(answers[0][0].body)["predictions"] == pytest.approx(expected)


def test_large_requests_are_computed_by_another_thread(model: Model) -> None:
    threads: list[int] = []
    answered = threading.Event()

    def done(answer: Answer) -> None:
        threads.append(threading.get_ident())
        answered.set()

    async def test(session: LoopSession) -> None:
        session.submit(call_of(30), done)
        assert await asyncio.to_thread(answered.wait, 30)

    run(model, test, loop_bytes=1000)

    assert threads != [threading.get_ident()]


def test_a_request_may_wait_for_others(model: Model) -> None:
    batches: list[int] = []

    async def test(session: LoopSession) -> None:
        compute = session._computing.compute
        session._computing.compute = lambda found: batches.append(len(found)) or compute(found)
        ended = asyncio.Event()
        session.submit(call_of(), lambda answer: None)
        for _ in range(5):
            await asyncio.sleep(0)
        session.submit(call_of(), lambda answer: ended.set())
        await ended.wait()

    run(model, test, max_delay=0.5)

    assert batches == [2]


def test_what_is_too_late_or_too_much_is_not_computed(model: Model) -> None:
    statuses: list[int] = []

    async def test(session: LoopSession) -> None:
        session.submit(call_of(seconds=-1.0), lambda answer: statuses.append(answer.status))
        session.submit(call_of(), lambda answer: statuses.append(answer.status))
        with pytest.raises(OverloadError):
            session.submit(call_of(), lambda answer: None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(model, test, max_waiting=2)

    assert statuses == [504, 200]
