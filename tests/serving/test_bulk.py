"""Arrow Flight: the model's bits batch by batch, what is wrong by name, and peers that idle."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from served_jobs import SavedModel, some_samples

from serving.bulk_client import BulkClient
from serving.endpoint import bulk
from serving.errors import DeadlineError, OverloadError, RequestError, ServingError

SAMPLES = pa.table(some_samples(np.random.default_rng(6), 200))
TOKEN = "a token of sixteen"


@pytest.fixture(scope="module")
def served_bulk(
    tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any]
) -> Iterator[Any]:
    job = SavedModel("plain", tmp_path_factory.mktemp("bulk") / "run")
    job.train(3)
    job.cut()
    found = started(job, follow_seconds=3600.0, flight_port=0)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def asked(served_bulk: Any) -> BulkClient:
    return client_of(served_bulk)


def client_of(served: Any, **changes: Any) -> BulkClient:
    given = {"address": served.serving.bulk.address, "model": "clicks", "token": TOKEN}
    return BulkClient(**{**given, "timeout_seconds": 60.0, **changes})


def values_of(client: BulkClient, data: Any) -> np.ndarray:
    return np.concatenate([each.values for each in client.predict(data)])


def test_batches_are_predicted_as_the_model_does(served_bulk: Any) -> None:
    expected = served_bulk.serving.model.predict(columns_of(SAMPLES)).values
    client = client_of(served_bulk, batch_rows=30)
    found = list(client.predict(SAMPLES))
    assert [len(each.values) for each in found] == [30] * 6 + [20]
    np.testing.assert_array_equal(np.concatenate([each.values for each in found]), expected)
    for each in found:
        assert (each.step, each.checkpoint) == (3, "full-000000000003")
        assert each.age_seconds >= 0

    turned = SAMPLES.select(SAMPLES.column_names[::-1])
    reader = pa.RecordBatchReader.from_batches(turned.schema, turned.to_batches())
    np.testing.assert_array_equal(values_of(client, reader), expected)
    np.testing.assert_array_equal(values_of(client, iter(SAMPLES.to_batches())), expected)
    assert list(client.predict(SAMPLES.slice(0, 0))) == []
    with_none = [SAMPLES.to_batches()[0].slice(0, 0), *SAMPLES.to_batches()]
    np.testing.assert_array_equal(values_of(client, with_none), expected)


def columns_of(table: pa.Table) -> dict[str, pa.Array]:
    return {name: table[name].combine_chunks() for name in table.column_names}


def test_what_is_wrong_is_said_by_name(asked: BulkClient) -> None:
    def refused(data: pa.Table) -> str:
        with pytest.raises(RequestError) as told:
            list(asked.predict(data))
        return str(told.value)

    assert refused(SAMPLES.drop_columns(["a"])).startswith("column 'a' is missing; the model reads")
    assert "no column 'dd'" in refused(SAMPLES.append_column("dd", SAMPLES["d1"]))
    assert "'d1' is there 2 times" in refused(SAMPLES.append_column("d1", SAMPLES["d1"]))
    place = SAMPLES.column_names.index("a")
    texts = pa.array(["x"] * len(SAMPLES))
    told = refused(SAMPLES.set_column(place, "a", texts))
    assert told.startswith("batch 0: column 'a' has keys of type string")
    late = [*SAMPLES.to_batches(max_chunksize=50)[:2], "no batch"]
    with pytest.raises(AttributeError):
        list(asked.predict(late))
    other = SAMPLES.set_column(place, "a", texts)
    with pytest.raises(pa.ArrowInvalid, match="different schema"):
        list(asked.predict([SAMPLES.to_batches()[0], other.to_batches()[0]]))


def test_the_model_and_the_token_must_be_right(served_bulk: Any) -> None:
    with pytest.raises(RequestError, match="there is no model 'other'"):
        list(client_of(served_bulk, model="other").predict(SAMPLES))
    for token in (None, "another of sixteen"):
        with pytest.raises(RequestError, match="the token is missing or wrong"):
            list(client_of(served_bulk, token=token).predict(SAMPLES))
    with pytest.raises(ServingError):
        list(
            client_of(served_bulk, address="grpc://127.0.0.1:1", timeout_seconds=5).predict(SAMPLES)
        )


def stream(served: Any, table: pa.Table = SAMPLES) -> tuple[Any, Any]:
    """Open a stream and have one batch answered."""
    client = flight.connect(served.serving.bulk.address)
    options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("clicks"), options)
    writer.begin(table.schema)
    writer.write_batch(table.to_batches()[0])
    assert reader.read_chunk().data.num_rows == table.num_rows
    return writer, reader


def test_a_stream_that_ends_without_a_schema_is_told_what_it_lacks(served_bulk: Any) -> None:
    client = flight.connect(served_bulk.serving.bulk.address)
    bearer = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("clicks"), bearer)
    writer.done_writing()

    with pytest.raises(flight.FlightServerError, match="must begin with the schema") as refused:
        reader.read_all()

    assert "Traceback" not in str(refused.value)


def test_streams_are_bounded_and_idle_ones_make_room(start: Callable[..., Any]) -> None:
    served = start(flight_port=0)
    server = served.serving.bulk
    server._most_streams, server._idle_seconds = 2, 3600.0
    open_ones = [stream(served), stream(served)]
    with pytest.raises(OverloadError, match="2 streams are open"):
        list(client_of(served).predict(SAMPLES))

    server._idle_seconds = 0.0
    assert len(values_of(client_of(served), SAMPLES)) == 200
    writer, reader = open_ones[0]
    writer.write_batch(SAMPLES.to_batches()[0])
    with pytest.raises(flight.FlightUnavailableError, match="has made room"):
        reader.read_chunk()
    for _, reader in open_ones:
        reader.cancel()


def test_batches_are_bounded(start: Callable[..., Any]) -> None:
    from serving.endpoint.answering import Limits

    served = start(flight_port=0, limits=Limits(body_bytes=2000), session={"max_rows": 100})
    with pytest.raises(RequestError, match=r"batch 0 has [\d,]+ bytes, at most 2,000 are taken"):
        list(client_of(served).predict(SAMPLES))
    small = SAMPLES.slice(0, 5)
    assert len(values_of(client_of(served), small)) == 5


def test_a_batch_waits_where_all_room_is_taken_until_its_time_is_over(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.endpoint.answering import Limits

    served = start(flight_port=0, limits=Limits(request_seconds=0.5))
    submit, tries = served.serving._pool.submit, []

    def busy(call: Any, done: Any) -> None:
        tries.append(call)
        if len(tries) < 4:
            raise OverloadError("256 requests wait, no more may")
        submit(call, done)

    monkeypatch.setattr(served.serving.bulk._sessions, "submit", busy)
    assert len(values_of(client_of(served), SAMPLES)) == 200
    assert len(tries) == 4

    monkeypatch.setattr(served.serving.bulk._sessions, "submit", lambda call, done: None)
    with pytest.raises(DeadlineError, match="batch 0: its time was over"):
        list(client_of(served).predict(SAMPLES))


def test_a_client_that_reads_no_answers_is_not_computed_for(start: Callable[..., Any]) -> None:
    served = start(flight_port=0)
    client = client_of(served, batch_rows=200)

    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            given.append(1)
            yield SAMPLES.to_batches()[0]

    given: list[int] = []
    answers = client.predict(endless())
    next(answers)
    before = -1
    while len(given) != before:  # what it sends comes to rest
        before = len(given)
        time.sleep(0.5)
    status, _, _ = served.ask("GET", "/v1/models/clicks")
    assert status == 200
    answers.close()


def test_each_batch_and_each_stream_that_is_refused_is_a_line_of_the_access_log(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    served = start(flight_port=0, access_log=str(tmp_path / "access.jsonl"))
    list(client_of(served, batch_rows=150).predict(SAMPLES))
    with pytest.raises(RequestError, match="there is no model 'other'"):
        list(client_of(served, model="other").predict(SAMPLES))
    with pytest.raises(RequestError, match="is missing"):
        list(client_of(served).predict(SAMPLES.select(["a"])))
    served.stop()
    figures = served.serving.endpoint.figures.page().decode()

    lines = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    told = [(line["path"], line["status"], line.get("rows")) for line in lines]
    assert told == [
        ("clicks", 200, 150),
        ("clicks", 200, 50),
        ("other", 404, None),
        ("clicks", 400, None),
    ]
    assert {line["method"] for line in lines} == {"DoExchange"}
    assert lines[0]["step"] == 3
    assert lines[0]["milliseconds"] > 0
    assert "127.0.0.1" in lines[0]["client"]
    assert 'synchromesh_serving_requests_total{status="404"} 1.0' in figures


def test_a_stream_sees_the_version_move_between_two_batches(start: Callable[..., Any]) -> None:
    served = start(flight_port=0, follow_seconds=0.02)
    writer, reader = stream(served)
    served.job.train(2)
    cut = served.job.cut()
    deadline = time.monotonic() + 60
    while served.serving.model.version.step == 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.write_batch(SAMPLES.to_batches()[0])
    chunk = reader.read_chunk()
    assert f'"checkpoint":"{cut.name}"' in chunk.app_metadata.to_pybytes().decode().replace(" ", "")
    expected = served.serving.model.predict(columns_of(SAMPLES)).values
    np.testing.assert_array_equal(chunk.data.column(0).to_numpy(), expected)
    writer.done_writing()
    writer.close()


def test_a_server_that_stops_ends_its_streams(start: Callable[..., Any]) -> None:
    served = start(flight_port=0)
    stream(served)
    began = time.monotonic()
    served.stop()
    assert time.monotonic() - began < bulk._CLOSE_SECONDS + 30
    with pytest.raises((OverloadError, ServingError)):
        list(client_of(served, timeout_seconds=5).predict(SAMPLES))


def test_the_command_ends_though_a_stream_is_open_that_sends_nothing(tmp_path: Path) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    job.cut()
    ports = ("--port", "0", "--flight-port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "synchromesh", "serve", str(tmp_path / "run"), *ports, "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        client = flight.connect(told["flight"])
        model = flight.FlightDescriptor.for_path(told["model"])
        writer, _ = client.do_exchange(model)
        writer.begin(SAMPLES.schema)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
