"""When samples arrived, when a delta with them could be read, was applied and was answered from."""

import asyncio
import json
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles as cut_points
from typing import Any

import pyarrow.parquet as pq

PAUSE_SECONDS = 0.01


def trained_rate(lines: Sequence[dict[str, Any]]) -> float:
    """Return the samples a second of a job's lines of metrics, without its first second.

    Raises:
        RuntimeError: it was over before.
    """
    trained = [line for line in lines if line["samples"] > 0]
    begin = next((line for line in trained if line["train_seconds"] >= 1.0), None)
    if begin is None or trained[-1]["train_seconds"] - begin["train_seconds"] < 1.0:
        raise RuntimeError("the job was too short to be measured: give more --rows")
    seconds = trained[-1]["train_seconds"] - begin["train_seconds"]
    return float((trained[-1]["samples"] - begin["samples"]) / seconds)


@dataclass
class Times:
    """What is seen of a job and its server, in seconds since 1970.

    Args:
        checkpoints, stream: folders of the job.

    Attributes:
        readable: of each step when its checkpoint had its name, and the samples that it has.
        applied, served: of each step when the server took it, and first answered from it.
        ages: `age_seconds` of every answer.
    """

    checkpoints: Path
    stream: Path
    readable: dict[int, tuple[float, int]] = field(default_factory=dict)
    applied: dict[int, float] = field(default_factory=dict)
    served: dict[int, float] = field(default_factory=dict)
    ages: list[float] = field(default_factory=list)
    began: float = 0.0
    _seen: set[str] = field(default_factory=set)

    @contextmanager
    def asked(
        self, serving: Any, client: Any, columns: tuple[Sequence[str], Sequence[str]]
    ) -> Iterator[None]:
        """Ask a server all the time while the block runs, and look at the checkpoints."""
        loop, up, over = asyncio.new_event_loop(), threading.Event(), threading.Event()
        serving.model.when_swapped(
            lambda loaded: self.applied.setdefault(loaded.version.step, time.time())
        )
        dense, sparse = columns
        row = dict.fromkeys(dense, 1.0) | dict.fromkeys(sparse, 7)

        def ask() -> None:
            while not over.wait(PAUSE_SECONDS):
                answer = client.predict([row])
                self.served.setdefault(answer.step, time.time())
                self.ages.append(answer.age_seconds)

        def look() -> None:
            while not over.wait(PAUSE_SECONDS):
                self.look()

        threads = [threading.Thread(target=lambda: loop.run_until_complete(serving.run(up.set)))]
        threads += [threading.Thread(target=each) for each in (ask, look)]
        threads[0].start()
        try:
            up.wait(60)
            self.began = time.time()
            for thread in threads[1:]:
                thread.start()
            yield
        finally:
            over.set()
            for thread in threads[1:]:
                thread.join()
            loop.call_soon_threadsafe(serving.server.stop)
            threads[0].join()
            loop.close()
            serving.close()

    def look(self) -> None:
        """Note checkpoints that are new. A folder gets its name by a rename, which it remembers."""
        for folder in self.checkpoints.glob("[fd]*-*"):
            if folder.name in self._seen:
                continue
            self._seen.add(folder.name)
            with suppress(OSError):  # it was removed
                manifest = json.loads((folder / "manifest.json").read_bytes())
                at = folder.stat().st_ctime
                self.readable[manifest["step"]] = (at, manifest["job"]["samples"])

    def arrivals(self) -> list[tuple[float, int]]:
        """Return when each file appeared, and how many rows had come with it, in order."""
        found: list[tuple[float, int]] = []
        rows = 0
        for path in sorted(self.stream.rglob("*.parquet")):
            if path.name.startswith("."):
                continue
            rows += pq.ParquetFile(path).metadata.num_rows
            found.append((path.stat().st_ctime, rows))
        return found


def latencies(times: Times, *, skip_seconds: float) -> dict[str, list[float]]:
    """Return the seconds from the arrival of each file to where its last row was then.

    A checkpoint has the first rows that arrived, as many as it has samples: in async a few batches
    may be of later ones. Files without a version that was served in time are left out.

    Args:
        skip_seconds: of the beginning, in which the job catches up with what came as it started.
    """
    steps = sorted(step for step in times.readable if step in times.served)
    steps = [step for step in steps if step in times.applied]
    samples = [times.readable[step][1] for step in steps]
    found: dict[str, list[float]] = {"readable": [], "applied": [], "served": []}
    for arrived, rows in times.arrivals():
        at = bisect_left(samples, rows)
        if arrived < times.began + skip_seconds or at == len(steps):
            continue
        step = steps[at]
        found["readable"].append(_readable(times, rows) - arrived)
        found["applied"].append(times.applied[step] - arrived)
        found["served"].append(times.served[step] - arrived)
    if not found["served"]:
        raise RuntimeError("nothing that arrived was served in time: give more --seconds")
    return found


def _readable(times: Times, rows: int) -> float:
    """Return when the first checkpoint with so many rows could be read, be it served or not."""
    return min(at for at, samples in times.readable.values() if samples >= rows)


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th of a hundred."""
    if len(values) < 2:
        return values[0], values[0]
    points = cut_points(values, n=100, method="inclusive")
    return points[49], points[98]
