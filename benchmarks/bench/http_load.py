"""Clients that each ask again as soon as they are answered, in one process of their own.

    python -m bench.http_load PORT CLIENTS SECONDS < REQUEST

REQUEST is all bytes of one request. Prints JSON: milliseconds of all, and how many failed.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw.

    Args:
        milliseconds: of each request, ascending.
        failed: requests that were not answered by 200.
        answered: how one of these was answered.
        seconds: that all took.
    """

    milliseconds: np.ndarray
    failed: int
    answered: str
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.milliseconds) / self.seconds

    @property
    def p99(self) -> float:
        return float(np.quantile(self.milliseconds, 0.99)) if len(self.milliseconds) else np.inf


def run_load(port: int, request: bytes, *, clients: int, seconds: float) -> Load:
    """Ask in another process, so that no lock of this one is in the way."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_load", str(port), str(clients), str(seconds)],
        input=request,
        capture_output=True,
        check=True,
        cwd=_HERE,
    )
    found = json.loads(done.stdout)
    return Load(
        np.sort(found["milliseconds"]), found["failed"], found["answered"], found["seconds"]
    )


def http_request(path: str, body: bytes, json_bytes: int | None = None) -> bytes:
    """Return the bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    if json_bytes is not None:
        head += f"Inference-Header-Content-Length: {json_bytes}\r\n"
    return head.encode() + b"\r\n" + body


async def _client(
    port: int, request: bytes, end: float, out: list[float], failed: list[str]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := time.perf_counter()) < end:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(size)
        if head.startswith(b"http/1.1 200"):
            out.append(1000 * (time.perf_counter() - began))
        else:
            failed.append(f"{head[:40]!r} {body[:300]!r}")
    writer.close()


async def _all(port: int, clients: int, seconds: float, request: bytes) -> dict[str, object]:
    out: list[float] = []
    failed: list[str] = []
    began = time.perf_counter()
    end = began + seconds
    await asyncio.gather(*(_client(port, request, end, out, failed) for _ in range(clients)))
    return {
        "milliseconds": [round(value, 4) for value in out],
        "failed": len(failed),
        "answered": failed[0] if failed else "",
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    found = asyncio.run(
        _all(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.stdin.buffer.read())
    )
    print(json.dumps(found, allow_nan=False))
