"""Producers without a broker: what is acknowledged is on the disk, once, whoever dies or lies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq
import pytest
from command_here import run_here

import worker.datasets.receiving
from runtime.storage import StorageError
from worker.data.directory_stream import DirectoryStream
from worker.datasets.flight_producer import FlightProducer
from worker.datasets.flight_server import FlightReceiver
from worker.datasets.receiving import Inbox, ReceiveError, Spool

TOKEN = "a token of sixteen"


def rows(first: int, count: int = 2) -> pa.RecordBatch:
    return pa.record_batch({"a": list(range(first, first + count))})


def received(folder: Path) -> list[int]:
    """The rows that a job on the stream would train, in order."""
    files = DirectoryStream(str(folder)).poll(most=1000, now=0.0)
    return [a for file in files for a in pq.read_table(file.path)["a"].to_pylist()]


# The state machine --------------------------------------------------------------------------------


def inbox(folder: Path, acknowledged: list[int], **options: Any) -> Inbox:
    return Inbox(Spool(folder), "p", acknowledged.append, **options)


def test_batches_wait_for_a_file_and_are_acknowledged_with_it(tmp_path: Path) -> None:
    heard: list[int] = []
    box = inbox(tmp_path, heard, most_rows=5)

    box.add(1, rows(0))
    box.add(2, rows(2))
    assert (heard, received(tmp_path)) == ([], [])
    box.flush()
    assert (heard, received(tmp_path)) == ([2], [0, 1, 2, 3])
    box.add(2, rows(2))
    assert heard == [2, 2], "it is known already"
    for number in (3, 4, 5):
        box.add(number, rows(10 * number))

    assert heard == [2, 2, 5], "so many rows don't wait"
    assert received(tmp_path)[4:] == [30, 31, 40, 41, 50, 51]


def test_what_does_not_follow_is_refused(tmp_path: Path) -> None:
    box = inbox(tmp_path, [])

    with pytest.raises(ReceiveError, match="batch 2 of 'p' came after batch 0"):
        box.add(2, rows(0))
    with pytest.raises(ReceiveError, match="no rows"):
        box.add(1, rows(0, 0))
    box.close(ReceiveError("another stream"))
    with pytest.raises(ReceiveError, match="another stream"):
        box.add(1, rows(0))
    for name in ("", "../x", ".x", "x" * 65, "a/b"):
        with pytest.raises(ReceiveError, match="name"):
            Spool(tmp_path).last(name)


@pytest.mark.parametrize("at", range(7))
def test_wherever_it_dies_a_batch_is_there_once_or_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Each thing that is done to the disk fails in turn, and all after it."""
    done = 0

    def failing(act: Callable[..., Any]) -> Callable[..., Any]:
        def act_or_die(*args: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > at:
                raise OSError("power is out")
            return act(*args, **options)

        return act_or_die

    first = inbox(tmp_path, [])
    first.add(1, rows(0))
    first.flush()
    heard: list[int] = []
    box = inbox(tmp_path, heard)
    box.add(2, rows(2))
    module = worker.datasets.receiving
    with monkeypatch.context() as patch:
        for name in ("new_file", "write_text", "make_folder", "flush_directory"):
            patch.setattr(module, name, failing(getattr(module, name)))
        patch.setattr(module.pq, "write_table", failing(pq.write_table))
        patch.setattr(Path, "rename", failing(Path.rename))
        try:
            box.flush()
        except OSError:
            assert heard == []

    spool = Spool(tmp_path)
    last = spool.last("p")
    again = Inbox(spool, "p", heard.append)
    for number in range(last + 1, 4):
        again.add(number, rows(2 * number - 2))
    again.flush()

    assert received(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert heard[-1] == 3
    assert [path.name for path in (tmp_path / ".receive").iterdir()] == ["p.json"]


def test_a_file_that_was_trained_and_removed_is_not_taken_again(tmp_path: Path) -> None:
    box = inbox(tmp_path, [])
    box.add(1, rows(0))
    box.flush()
    for folder in tmp_path.glob("2*"):
        shutil.rmtree(folder)

    assert Spool(tmp_path).last("p") == 1


def test_a_state_that_is_damaged_is_no_new_beginning(tmp_path: Path) -> None:
    Spool(tmp_path)
    (tmp_path / ".receive" / "p.json").write_text("{}")

    with pytest.raises(ReceiveError, match=r"p\.json is damaged"):
        Spool(tmp_path).last("p")


# Over Flight --------------------------------------------------------------------------------------


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[FlightReceiver]:
    server = FlightReceiver(tmp_path / "in", token=TOKEN, every_seconds=0.05, most_producers=2)
    yield server
    server.close()


def producer(receiver: FlightReceiver, name: str = "p", **options: Any) -> FlightProducer:
    return FlightProducer(receiver.location, **{"name": name, "token": TOKEN, **options})


def table(first: int, count: int = 2) -> pa.Table:
    return pa.Table.from_batches([rows(first, count)])


def test_what_was_flushed_is_there_and_the_next_of_the_name_goes_on(
    receiver: FlightReceiver, tmp_path: Path
) -> None:
    with producer(receiver) as sending:
        sending.send(table(0))
        sending.flush()
        assert received(tmp_path / "in") == [0, 1]
        sending.send(table(2))
        sending.send(table(4).slice(0, 0))
        sending.send(pa.table({"a": [4], "more": ["x"]}))
        sending.send(table(5, 1))
    with producer(receiver) as again, producer(receiver, "other") as other:
        assert (again.acknowledged, other.acknowledged) == (4, 0)
        again.send(table(6))
        other.send(table(8, 1))

    assert sorted(received(tmp_path / "in")) == [*range(9)]


def test_a_receiver_that_dies_is_waited_for_and_nothing_is_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    first = FlightReceiver(folder, token=TOKEN, every_seconds=0.05)
    port = first.port
    sending = producer(first, retry_seconds=20.0)
    sending.send(table(0))
    sending.flush()
    sending.send(table(2))
    first.close()
    others: list[FlightReceiver] = []

    def begin_again() -> None:
        others.append(FlightReceiver(folder, token=TOKEN, every_seconds=0.05, port=port))

    timer = threading.Timer(1.0, begin_again)
    timer.start()
    sending.send(table(4))
    sending.send(table(6))
    sending.close()
    timer.join()
    others[0].close()

    assert received(folder) == [*range(8)]


def test_a_second_stream_of_a_producer_takes_over(receiver: FlightReceiver, tmp_path: Path) -> None:
    first = producer(receiver)
    first.send(table(0))
    first.flush()
    second = producer(receiver)

    with pytest.raises(StorageError, match="another stream"):
        first.send(table(2)), first.flush()
    second.send(table(2))
    second.close()

    assert received(tmp_path / "in") == [0, 1, 2, 3]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "b" * 18])
def test_nobody_sends_without_the_token(
    receiver: FlightReceiver, tmp_path: Path, token: str
) -> None:
    with pytest.raises(StorageError, match="token is missing or wrong"):
        producer(receiver, token=token)

    assert received(tmp_path / "in") == []


def put(receiver: FlightReceiver, metadata: bytes, batch: pa.RecordBatch, path: str = "p") -> None:
    client = flight.connect(receiver.location)
    options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
    writer, _ = client.do_put(flight.FlightDescriptor.for_path(path), batch.schema, options)
    writer.write_with_metadata(batch, metadata)
    writer.close()


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{}", b'{"batch": "1"}', b'{"batch": 0}', b"[" * 300, b'{"batch": true}', b"\xff"],
)
def test_batches_without_a_number_are_refused(receiver: FlightReceiver, metadata: bytes) -> None:
    with pytest.raises(flight.FlightServerError, match="app metadata"):
        put(receiver, metadata, rows(0))


def test_text_that_is_no_text_is_refused_without_a_word_of_the_servers_files(
    receiver: FlightReceiver,
) -> None:
    buffers = [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    batch = pa.record_batch({"a": pa.Array.from_buffers(pa.string(), 1, buffers)})

    with pytest.raises(flight.FlightServerError, match=r"can't be read: .*UTF8") as refused:
        put(receiver, b'{"batch": 1}', batch)

    assert "Traceback" not in str(refused.value)
    assert ".py" not in str(refused.value)


def test_what_is_too_large_or_too_much_is_refused(tmp_path: Path) -> None:
    server = FlightReceiver(tmp_path, token=TOKEN, most_producers=1, most_batch_bytes=1000)

    with pytest.raises(flight.FlightServerError, match="8,000 bytes, at most 1,000"):
        put(server, b'{"batch": 1}', rows(0, 1000))
    with producer(server), pytest.raises(StorageError, match="1 producers send already"):
        producer(server, "other", retry_seconds=0.1)
    with pytest.raises(StorageError, match="name"):
        producer(server, "../x")
    server.close()
    assert received(tmp_path) == []


def test_who_is_out_of_reach_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not take"):
        FlightProducer("grpc://127.0.0.1:1", name="p", token=TOKEN, retry_seconds=0.1)


def test_more_than_may_wait_slows_who_sends(receiver: FlightReceiver, tmp_path: Path) -> None:
    sending = producer(receiver, most_waiting_bytes=1000)
    for number in range(40):
        sending.send(table(100 * number, 100))
        assert sending._waiting_bytes < 1000 + 800
    sending.close()

    assert len(received(tmp_path / "in")) == 4000


def test_the_command_receives_what_the_other_replays(tmp_path: Path) -> None:
    pq.write_table(table(0, 500), tmp_path / "day.parquet")
    (tmp_path / "token").write_text(TOKEN)
    command = ("data", "receive", "--to", tmp_path / "in", "--port", 0, "--json")
    secret = ("--token-file", tmp_path / "token")
    process = subprocess.Popen(
        [sys.executable, "-m", "synchromesh", *map(str, (*command, *secret))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdout is not None
    try:
        to = json.loads(process.stdout.readline())["location"]
        sent = run_here(
            "data", "replay", tmp_path / "day.parquet", "--to", to, "--rate", 1e9, *secret
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()

    assert sent.returncode == 0, sent.stderr
    assert received(tmp_path / "in") == [*range(500)]
    refused = run_here("data", "receive", "--to", tmp_path / "in")
    assert refused.returncode == 2
    assert "SYNCHROMESH_RECEIVE_TOKEN" in refused.stderr
