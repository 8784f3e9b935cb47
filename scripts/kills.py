"""A job on a stream whose processes are killed again and again: each sample is trained once.

    python scripts/kills.py --kills 100

Samples with a number of their own arrive all the time. A real job trains them, and `kill -9` meets
its driver, a server, the coordinator or a worker, drawn by a seed, each time that it has a
checkpoint more. Then the job trains what is there and ends, and its last checkpoint says how often
each number was in a step. Prints a line of JSON a kill, and one of the audit. Exits with 1 where a
sample was not trained, or more than once.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ps.checkpoint.read import CheckpointReader
from runtime.strict_json import json_text

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "server": "ray::ServerActor",
    "coordinator": "ray::CoordinatorActor",
    "worker": "ray::WorkerActor",
}
ROWS_OF_FILE = 200
MOST_FILES = 300  # in the stream; whoever waits for longer than this writes all the same
ROOM_SECONDS = 20.0
MOST_SECONDS = 1200.0  # that a checkpoint, or the end, is waited for
# What a job says that a busy machine is the reason of, not the kill: it is started again.
TOO_BUSY = ("Ray did not start on this machine", "did not come up within")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=400, help="rows a second (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.kills < 1 or arguments.rate <= 0:
        parser.error("--kills must be >= 1, --rate > 0")
    return arguments


def job_of(folder: Path, mode: str) -> dict[str, Any]:
    return {
        "seed": 1,
        "data": {
            "stream": {"dir": str(folder / "stream"), "poll_seconds": 0.1, "close_seconds": 0.2,
                       "trained_files": "remove"},
            "dense": ["d"], "sparse": ["a", "row"], "batch_size": 128,
        },
        "embedding": {"dim": 4},
        "tables": {"row": {"track_usage": True}},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"mode": mode, "global_batch": 256, "staleness_bound": 1000},
        "cluster": {"workers": 2, "servers": 2, "start_timeout_seconds": 300,
                    "max_worker_restarts": 1000},
        "checkpoint": {"every_seconds": 1, "full_every": 10, "keep": 2},
        "run": {"dir": str(folder / "run"), "resume": "auto", "progress_every_seconds": 0.5},
    }  # fmt: skip


class Stream:
    """Files of numbered rows, as time passes; once it is closed `rows` is how many there are."""

    def __init__(self, folder: Path, rate: float) -> None:
        folder.mkdir()
        self.rows = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, args=(folder, rate))
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _write(self, folder: Path, rate: float) -> None:
        rng = np.random.default_rng(1)
        while not self._over.wait(ROWS_OF_FILE / rate):
            waits_until = time.monotonic() + ROOM_SECONDS
            while len(os.listdir(folder)) > MOST_FILES and time.monotonic() < waits_until:
                if self._over.wait(0.5):
                    return
            numbers = np.arange(self.rows, self.rows + ROWS_OF_FILE)
            table = pa.table(
                {
                    "label": (rng.random(ROWS_OF_FILE) < 0.3).astype(np.int8),
                    "d": rng.random(ROWS_OF_FILE, np.float32),
                    "a": rng.integers(0, 1000, ROWS_OF_FILE),
                    "row": numbers,
                }
            )
            partial = folder / f".{self.rows:09d}.parquet"
            pq.write_table(table, partial)
            partial.rename(folder / f"{self.rows:09d}.parquet")
            self.rows += ROWS_OF_FILE


class Job:
    """The process of the driver, which is started again once it was killed."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.run = folder / "run"
        self._folder = folder
        (folder / "job.json").write_text(json_text(job_of(folder, mode)))
        self._process = self._start()

    def kill(self, role: str, rng: random.Random) -> bool:
        """Kill one process of a role; whether there was any."""
        if role == "driver":
            self._process.kill()
            self._process.wait()
            self._process = self._start()
            return True
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).startswith(TITLES[role]):
                    found.append(child)
            except psutil.Error:
                continue
        if not found:
            return False
        rng.choice(sorted(found, key=lambda child: child.pid)).kill()
        return True

    def newest(self) -> tuple[int, str] | None:
        """Return when the newest checkpoint was made, as the file system says, and its name."""
        found = []
        for manifest in (self.run / "checkpoints").glob("*/manifest.json"):
            try:
                found.append((manifest.stat().st_mtime_ns, manifest.parent.name))
            except OSError:
                continue
        return max(found, default=None)

    def wait_for_another(self, before: tuple[int, str] | None) -> None:
        deadline = time.monotonic() + MOST_SECONDS
        while (now := self.newest()) is None or now == before:
            self._check(deadline)
            time.sleep(0.05)

    def finish(self) -> Path:
        """Train what is there; return the last checkpoint."""
        deadline = time.monotonic() + MOST_SECONDS
        while not self._ordered_finish() and self._process.poll() is None:
            self._check(deadline)
            time.sleep(1.0)
        if self._process.wait(timeout=MOST_SECONDS):
            raise RuntimeError(self._said())
        checkpoint = json.loads((self.run / "result.json").read_text())["checkpoint"]
        return self.run / "checkpoints" / Path(checkpoint).name

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=120)

    def _ordered_finish(self) -> bool:
        command = [sys.executable, "-m", "synchromesh", "control", str(self.run), "finish"]
        done = subprocess.run(command, cwd=self._folder, env=_environment(), capture_output=True)
        return done.returncode == 0

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._folder / "job.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "synchromesh", "train", str(self._folder / "job.json")],
                cwd=self._folder, env=_environment(), stdout=log, stderr=log,
            )  # fmt: skip

    def _check(self, deadline: float) -> None:
        over = self._process.poll() is not None
        if over and any(text in self._said()[-500:] for text in TOO_BUSY):
            self._process = self._start()
        elif over or time.monotonic() > deadline:
            raise RuntimeError(self._said())

    def _said(self) -> str:
        return (self._folder / "job.log").read_text(errors="replace")[-3000:]


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**environment, "PYTHONPATH": str(ROOT)}


def audit(checkpoint: Path, rows: int) -> dict[str, int]:
    """Return how many rows were in how many steps, as the table of their numbers has it."""
    reader = CheckpointReader(checkpoint)
    (table,) = (table for table in reader.store.tables if table.name == "row")
    times: Counter[int] = Counter()
    for part in reader.rows(table):
        times.update(part.frequency.tolist())
    found = sum(times.values())
    more = sum(count for number, count in times.items() if number > 1)
    return {"rows": rows, "once": times[1], "never": rows - found, "more_often": more}


def tell(line: dict[str, Any]) -> None:
    print(json_text(line), flush=True)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        stream = Stream(folder / "stream", arguments.rate)
        job = Job(folder, rng.choice(["sync", "async", "gba"]))
        try:
            kills, before = 0, None
            while kills < arguments.kills:
                job.wait_for_another(before)
                time.sleep(rng.uniform(0.0, 1.0))
                before, role = job.newest(), rng.choice(["driver", *TITLES])
                if job.kill(role, rng):
                    kills += 1
                    tell({"kill": kills, "role": role, "rows": stream.rows})
            stream.close()
            found = audit(job.finish(), stream.rows)
        finally:
            stream.close()
            job.stop()
    tell({"kills": kills, **found})
    return 0 if found["once"] == found["rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
