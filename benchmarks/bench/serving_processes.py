"""Servers that are asked over HTTP: ours, and others around the same model."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.http_load import http_request
from serving.endpoint.server import free_port

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@contextlib.contextmanager
def our_server(run: Path, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """Serve a run by the command; give its port and process."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "synchromesh", "serve", str(run), "--name", "m"]
    with _process([*command, "--port", str(port), *options], port) as process:
        yield port, process


@contextlib.contextmanager
def other_server(kind: str, folder: Path, where: str) -> Iterator[tuple[int, psutil.Process]]:
    """Serve the model of another library, computed in `loop` or `thread`; give port and process."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "bench.other_models", kind, str(folder), str(port), where]
    with _process(command, port) as process:
        yield port, process


@contextlib.contextmanager
def fixed_server(library: str) -> Iterator[tuple[int, psutil.Process]]:
    """Answer the same to all by a library; give its port and process."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "bench.fixed_answers", library, str(port)]
    with _process(command, port) as process:
        yield port, process


@contextlib.contextmanager
def _process(command: list[str], port: int) -> Iterator[psutil.Process]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    started = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if started.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command[:4])} did not come up")
            time.sleep(0.05)
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def tensors(columns: Mapping[str, np.ndarray]) -> bytes:
    """Return a request of binary tensors of the Open Inference Protocol."""
    inputs = [
        {
            "name": name,
            "datatype": _DATATYPES[array.dtype.name],
            "shape": [len(array)],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in columns.items()
    ]
    asked: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    head = json.dumps(asked, allow_nan=False).encode()
    body = head + b"".join(array.tobytes() for array in columns.values())
    return http_request("/v2/models/m/infer", body, len(head))


def served_step(port: int) -> int:
    """Ask our server which step it serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models/m", timeout=10) as answer:
        entries = json.loads(answer.read())["model_version_status"]
    return int(next(each["version"] for each in entries if each["state"] == "AVAILABLE"))
