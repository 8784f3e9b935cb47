"""Days of a server in minutes: what it has grows no more, whoever asks and however.

A server follows a job whose cuts come many times a second; beside clients that ask as they should
there are those that don't. SERVING_SOAK_SECONDS makes it last longer.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from served_jobs import SavedModel, some_samples

from serving import Client
from serving.bulk_client import BulkClient

SECONDS = float(os.environ.get("SERVING_SOAK_SECONDS", "100"))
MOST_GROWTH = 0.05
TOKEN = "a token of sixteen"
SAMPLES = pa.table(some_samples(np.random.default_rng(8), 50))
ROWS = SAMPLES.to_pylist()
UNKNOWN = [{**row, "a": 1 << 50, "b": -5, "tags": [1 << 61]} for row in ROWS]
_KEPT_CUTS = 30


@contextlib.contextmanager
def server_of(run: Path) -> Iterator[tuple[psutil.Process, int, str]]:
    """Serve a run by the command; give its process, port and Flight's address."""
    command = [sys.executable, "-m", "synchromesh", "serve", str(run), "--name", "clicks", "--json"]
    options = ["--port", "0", "--flight-port", "0", "--follow-seconds", "0.05"]
    limits = ["--timeout-seconds", "60", "--access-log", str(run / "access.log")]
    process = subprocess.Popen(
        [*command, *options, *limits],
        env={**os.environ, "SYNCHROMESH_SERVE_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        port = int(told["address"].rsplit(":", 1)[1])
        yield psutil.Process(process.pid), port, told["flight"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def job_goes_on(job: SavedModel) -> Callable[[], None]:
    """Return what makes the next cut, and removes what is older than the last full one but one."""
    made: list[tuple[Path, bool]] = []

    def cut() -> None:
        full = len(made) % _KEPT_CUTS == 0
        job.train(1, evict=False)
        made.append((job.cut(full=full), full))
        fulls = [number for number, (_, is_full) in enumerate(made) if is_full]
        for path, _ in made[: fulls[-2] if len(fulls) > 1 else 0]:
            shutil.rmtree(path, ignore_errors=True)

    return cut


class Misbehaving:
    """Clients that each do one thing wrong."""

    def __init__(self, port: int, flight_address: str) -> None:
        self._port, self._flight = port, flight_address
        self._told = f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\n"

    def _socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=10)

    def _asked(self, body: bytes, *, path: str = "/v1/models/clicks:predict") -> bytes:
        """Return the status line of an answer."""
        head = f"POST {path} HTTP/1.1\r\n{self._told}Content-Length: {len(body)}\r\n"
        with self._socket() as client:
            client.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
            return client.makefile("rb").readline()

    def stops_reading(self) -> None:
        """Ask again and again, and read nothing."""
        body = json.dumps({"instances": ROWS}).encode()
        head = f"POST /v1/models/clicks:predict HTTP/1.1\r\n{self._told}".encode()
        request = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        with self._socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1.0)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    client.sendall(request)

    def half_a_request(self) -> None:
        with self._socket() as client:
            client.sendall(f"POST /v1/models/clicks:predict HTTP/1.1\r\n{self._told}".encode())
        with self._socket() as client:
            client.sendall(
                f"POST /v1/models/clicks:predict HTTP/1.1\r\n{self._told}"
                'Content-Length: 100\r\n\r\n{"inst'.encode()
            )

    def a_huge_header(self) -> None:
        with self._socket() as client, contextlib.suppress(OSError):
            client.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20))
            client.recv(1000)

    def wrong_shapes(self) -> None:
        tensor = {"name": "a", "datatype": "INT64", "shape": [2, 3, 4], "data": [1]}
        path = "/v2/models/clicks/infer"
        for body in ({"inputs": [tensor]}, {"inputs": [{**tensor, "shape": [7]}]}, {"inputs": 3}):
            assert b" 400 " in self._asked(json.dumps(body).encode(), path=path)

    def no_numbers(self) -> None:
        body = json.dumps({"instances": [{**ROWS[0], "d1": float("nan")}]}).encode()
        assert b" 400 " in self._asked(body)
        assert b" 400 " in self._asked(body.replace(b"NaN", b"Infinity"))

    def unknown_keys(self) -> None:
        assert b" 200 " in self._asked(json.dumps({"instances": UNKNOWN}).encode())

    def no_token(self) -> None:
        with self._socket() as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b" 401 " in client.makefile("rb").readline()

    def a_stream_that_is_left(self) -> None:
        headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
        client = flight.connect(self._flight)
        options = flight.FlightCallOptions(headers=headers, timeout=5.0)
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("clicks"), options)
        writer.begin(SAMPLES.schema)
        for _ in range(3):
            writer.write_batch(SAMPLES.to_batches()[0])
        reader.read_chunk()
        reader.cancel()
        with contextlib.suppress(pa.ArrowException):
            writer.done_writing()
            writer.close()
        client.close()

    @property
    def all(self) -> list[Callable[[], None]]:
        return [
            self.stops_reading, self.half_a_request, self.a_huge_header, self.wrong_shapes,
            self.no_numbers, self.unknown_keys, self.no_token, self.a_stream_that_is_left,
        ]  # fmt: skip


def figures_of(process: psutil.Process) -> dict[str, float]:
    family = [process, *process.children(recursive=True)]
    return {
        "memory": sum(each.memory_full_info().uss for each in family),
        "open files": sum(each.num_fds() for each in family),
        "threads": sum(each.num_threads() for each in family),
        "processes": len(family),
    }


class Repeated:
    """Does things in turns, again and again, in a thread, until one fails or it is told to end."""

    def __init__(
        self, over: threading.Event, *do: Callable[[], Any], pause_seconds: float = 0.02
    ) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._do, self._over, self._pause = do, over, pause_seconds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                for each in self._do:
                    each()
                    self._over.wait(self._pause)
                self.count += 1
        except BaseException as error:
            self.error = error
            self._over.set()

    def end(self) -> None:
        self._thread.join(60)
        if self.error is not None:
            raise self.error


@pytest.mark.slow  # as long as it takes until growth can be told from noise
@pytest.mark.timeout(SECONDS + 300)
def test_days_of_requests_swaps_and_bad_clients_leave_a_server_as_it_was(tmp_path: Path) -> None:
    job = SavedModel("plain", tmp_path / "run")
    job.train(5)
    cut = job_goes_on(job)
    cut()
    over = threading.Event()
    seen: list[dict[str, float]] = []
    steps: set[int] = set()
    with server_of(job.run) as (process, port, flight_address):
        good = Client(
            address=f"http://127.0.0.1:{port}", model="clicks", token=TOKEN, timeout_seconds=60
        )
        bulk = BulkClient(address=flight_address, model="clicks", token=TOKEN, timeout_seconds=60)

        def ask() -> None:
            answer = good.predict(ROWS)
            assert np.isfinite(answer.values).all()
            steps.add(answer.step)

        def ask_bulk() -> None:
            assert (
                sum(len(each.values) for each in bulk.predict([*SAMPLES.to_batches()] * 3)) == 150
            )

        bad = Misbehaving(port, flight_address)
        turns = [Repeated(over, each) for each in (ask, ask, ask_bulk)]
        turns += [Repeated(over, cut, pause_seconds=0.1), Repeated(over, *bad.all)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not over.wait(SECONDS / 200):
            seen.append(figures_of(process))
        over.set()
        for turn in turns:
            turn.end()
        assert good.status()["refused"] == []

    third = len(seen) // 3
    for figure in seen[0]:
        early = float(np.median([each[figure] for each in seen[third : third + third // 2]]))
        late = float(np.median([each[figure] for each in seen[-third // 2 :]]))
        assert late <= (1 + MOST_GROWTH) * early, f"{figure}: {early:,.0f} early, {late:,.0f} late"
    assert len(steps) > SECONDS / 2, "versions are swapped"
    assert all(turn.count > 2 for turn in turns)
