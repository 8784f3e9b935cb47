"""A server that follows its run, is asked too much, and is stopped."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_jobs import some_samples

from serving import Client, DeadlineError, OverloadError, RequestError, ServingError
from serving.endpoint.answering import Limits
from serving.running import ServeOptions, Serving
from serving.session import Session, SessionOptions

SAMPLES = some_samples(np.random.default_rng(5), 20)
COLUMNS = {name: array.to_pylist() for name, array in SAMPLES.items()}
TOKEN = "a token of sixteen"


def client_of(served: Any, **options: Any) -> Client:
    options = {"timeout_seconds": 60.0, **options}
    return Client(address=served.serving.address, model="clicks", token=TOKEN, **options)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def test_requests_see_one_step_each_while_versions_are_swapped_and_rolled_back(
    start: Callable[..., Any],
) -> None:
    served = start(follow_seconds=0.02, keep_versions=20, limits=Limits(request_seconds=60.0))
    client, model = client_of(served), served.serving.model
    answers: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.predict(COLUMNS))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for _ in range(4):
        served.job.train()
        step = int(served.job.cut().name.split("-")[1])
        until(lambda step=step: model.version.step == step)  # type: ignore[misc]
    assert client.rollback()["rolled_back"]
    assert client.predict(COLUMNS).step == step - 1
    client.release()
    stop.set()
    for thread in asking:
        thread.join()

    expected = {}
    for version in model.versions:
        model.rollback(version.step)
        expected[version.step] = model.predict(SAMPLES).values
    assert len({answer.step for answer in answers}) > 1
    for answer in answers:
        np.testing.assert_array_equal(answer.values, expected[answer.step])


def test_more_requests_than_may_wait_are_refused_at_once_and_late_ones_not_computed(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start(
        session={"max_waiting": 2, "max_batch": 1, "loop_bytes": 0},
        limits=Limits(request_seconds=2.0),
    )
    entered, go_on = threading.Event(), threading.Event()
    compute = Session._compute
    computed = []

    def held(self: Any, decoded: Any) -> None:
        computed.append(len(decoded))
        entered.set()
        go_on.wait(30)
        compute(self, decoded)

    monkeypatch.setattr("serving.session.Session._compute", held)
    outcomes: list[Any] = []

    def ask() -> None:
        try:
            outcomes.append(client_of(served, retries=0).predict(COLUMNS))
        except (OverloadError, DeadlineError) as error:
            outcomes.append(error)

    asking = [threading.Thread(target=ask)]
    asking[0].start()
    assert entered.wait(30)
    asking += [threading.Thread(target=ask) for _ in range(5)]
    for thread in asking[1:]:
        thread.start()
    until(lambda: len(outcomes) == 3)
    assert all(isinstance(each, OverloadError) for each in outcomes)
    until(lambda: len(outcomes) == 6)  # their time is over
    go_on.set()
    for thread in asking:
        thread.join()

    assert sum(isinstance(each, DeadlineError) for each in outcomes) == 3
    assert client_of(served).predict(COLUMNS).step == 3
    assert computed == [1, 1], "those that nobody waited for were not"


def test_the_client_says_what_is_wrong_and_tries_again_where_that_helps(
    start: Callable[..., Any],
) -> None:
    served = start()
    with pytest.raises(RequestError, match="column 'd2' is missing"):
        client_of(served).predict({"d1": [1]})
    with pytest.raises(RequestError, match="a token is needed"):
        Client(address=served.serving.address, model="clicks").status()
    served.stop()
    pauses: list[float] = []
    client = client_of(served, retries=2, _sleep=pauses.append)
    with pytest.raises(ServingError, match="can't be reached"):
        client.status()
    assert len(pauses) == 2
    assert pauses[1] > pauses[0] / 2


def test_a_body_that_does_not_come_is_not_waited_for(start: Callable[..., Any]) -> None:
    served = start(limits=Limits(body_seconds=0.1))
    head = b"POST /v1/models/clicks:predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
    head += TOKEN.encode() + b"\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(head)
        assert b" 408 " in connection.recv(65536)


def test_what_is_under_way_is_answered_before_the_end(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start(session={"loop_bytes": 0})
    entered, go_on = threading.Event(), threading.Event()
    compute = Session._compute

    def held(self: Any, decoded: Any) -> None:
        entered.set()
        go_on.wait(30)
        compute(self, decoded)

    monkeypatch.setattr("serving.session.Session._compute", held)
    outcomes: list[Any] = []
    asking = threading.Thread(
        target=lambda: outcomes.append(client_of(served, retries=0).predict(COLUMNS))
    )
    asking.start()
    assert entered.wait(30)
    stopping = threading.Thread(target=served.stop)
    stopping.start()
    until(lambda: served.serving.endpoint.stopping)
    assert served.ask("GET", "/v2/health/ready")[0] == 503
    assert served.ask("POST", "/v1/models/clicks:predict", {"inputs": COLUMNS})[0] == 503
    go_on.set()
    asking.join()
    stopping.join()

    assert outcomes[0].step == 3


def test_each_request_is_a_line_of_the_access_log(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    served = start(access_log=str(tmp_path / "access.jsonl"))
    client_of(served).predict(COLUMNS)
    served.ask("GET", "/nowhere")
    served.stop()

    lines = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/models/clicks:predict", 200),
        ("/nowhere", 404),
    ]
    assert (lines[0]["rows"], lines[0]["step"]) == (20, 3)
    assert lines[0]["milliseconds"] > 0


def test_others_than_this_machine_need_a_token(tmp_path: Path) -> None:
    options = ServeOptions(source="none", session=SessionOptions(name="m"), host="0.0.0.0")
    with pytest.raises(ServingError, match=r"at 0\.0\.0\.0 others could ask too: give a token"):
        Serving(options)


def test_a_port_that_is_taken_is_named(start: Callable[..., Any]) -> None:
    served = start()
    options = ServeOptions(
        source=str(served.job.run), session=SessionOptions(name="m"), port=served.port
    )
    with pytest.raises(ServingError, match=r"can't be listened at: .*name another --port"):
        Serving(options)


@pytest.mark.slow
def test_sessions_in_processes_answer_alike_follow_and_come_again_when_they_die(
    start: Callable[..., Any],
) -> None:
    served = start(sessions=2, follow_seconds=0.02)
    client, model = client_of(served, retries=8), served.serving.model

    np.testing.assert_array_equal(client.predict(COLUMNS).values, model.predict(SAMPLES).values)
    served.job.train()
    served.job.cut()
    until(lambda: client.predict(COLUMNS).step == 4)
    np.testing.assert_array_equal(client.predict(COLUMNS).values, model.predict(SAMPLES).values)
    session = served.serving._pool._sessions[0]
    killed = session.pid
    os.kill(killed, signal.SIGKILL)
    assert client.predict(COLUMNS).step == 4, "the other one answers meanwhile"
    until(lambda: session.pid != killed and session._connection is not None)
    answers = [client.predict(COLUMNS) for _ in range(4)]
    assert {answer.step for answer in answers} == {4}
