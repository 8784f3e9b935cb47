"""A job on a stream for weeks, in minutes: memory, disk and open files must not grow.

    python scripts/soak.py --minutes 60

Rows come faster, windows and intervals are shorter, and files of figures are begun anew sooner than
in a job of weeks, so that all that a job keeps is replaced many times. Ids appear and are evicted,
files of samples go once they are trained. Where fewer are trained than come there is a backlog.
Prints a line of JSON a minute, and one for each figure: its mean after the first sixth of the time,
and in the last. Exits with 1 where one has grown by more than `--most`.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.growing_files import MetricsFiles
from runtime.strict_json import json_text
from scheduler import JobConfig, Trainer
from scheduler.coordinator.batch_trace import BatchFile

FIGURES = ("rss_bytes", "disk_bytes", "open_files", "processes")
# In the stream: checkpoints that are kept may need 512,000 rows, the others wait.
MOST_ROWS = 2_000_000
ROOM_SECONDS = 20.0  # that a file waits for room at most: without steps nothing makes any
SHIFT_ROWS = 200_000  # until half of the ids are new ones


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=20_000, help="rows a second (%(default)s)")
    parser.add_argument("--most", type=float, default=0.05, help="growth (%(default)s)")
    return parser.parse_args(argv)


def job_of(folder: Path) -> dict[str, Any]:
    """Return a job of which everything comes often."""
    ttl = {"steps_to_live": 40, "every_steps": 5}
    return {
        "seed": 1,
        "data": {
            "stream": {"dir": str(folder / "stream"), "poll_seconds": 0.1, "close_seconds": 0.2,
                       "late_seconds": 5, "trained_files": "remove"},
            "dense": ["d"], "sparse": ["a", "b"], "batch_size": 512,
        },
        "embedding": {"dim": 8, "eviction": ttl, "admission": {"min_count": 2}},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"mode": "async", "global_batch": 1024, "online": {"window_seconds": 1}},
        "cluster": {"workers": 1, "servers": 1, "start_timeout_seconds": 300},
        # By steps: where the machine gets busier, no more changes from one to the next.
        "checkpoint": {"every_steps": 25, "every_seconds": None, "full_every": 10, "keep": 2},
        "run": {"dir": str(folder / "run"), "progress_every_seconds": 0.25},
    }  # fmt: skip


def write_stream(folder: Path, rate: float, over: threading.Event) -> None:
    """Write a file four times a second, where there is room; their ids move on."""
    rng, written, number = np.random.default_rng(1), 0, 0
    folder.mkdir()
    rows = round(rate / 4)
    began = time.monotonic()
    while not over.is_set():
        first = written * 20_000 // SHIFT_ROWS
        a = first + rng.integers(0, 20_000, rows)
        b = rng.zipf(1.3, rows) % 50_000
        label = (rng.random(rows) < 0.1 + 0.3 * (a % 3 == 0)).astype(np.int8)
        table = pa.table({"label": label, "d": rng.random(rows, np.float32), "a": a, "b": b})
        partial = folder / f".{number:09d}.parquet"
        pq.write_table(table, partial)
        partial.rename(folder / f"{number:09d}.parquet")
        written, number = written + rows, number + 1
        over.wait(max(0.0, began + number / 4 - time.monotonic()))
        waits_until = time.monotonic() + ROOM_SECONDS
        while len(os.listdir(folder)) * rows > MOST_ROWS and time.monotonic() < waits_until:
            if over.wait(0.25):
                return


def seen(run: Path) -> dict[str, float]:
    """Return what this process and those of the job below it take now."""
    own = psutil.Process()
    found = [own, *(p for p in own.children(recursive=True) if _is_ours(p))]
    figures = dict.fromkeys(FIGURES, 0.0)
    for process in found:
        try:
            figures["rss_bytes"] += process.memory_info().rss
            figures["open_files"] += process.num_fds()
            figures["processes"] += 1
        except psutil.Error:
            continue
    for folder, _, names in os.walk(run):
        for name in names:
            try:
                figures["disk_bytes"] += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return figures


def _is_ours(process: psutil.Process) -> bool:
    try:
        return "Actor" in " ".join(process.cmdline()[:1])
    except psutil.Error:
        return False


def growth(samples: Sequence[dict[str, float]], figure: str) -> tuple[float, float]:
    """Return the means of a figure in the second and in the last sixth of the samples."""
    sixth = max(1, len(samples) // 6)
    values = [each[figure] for each in samples]
    return mean(values[sixth : 2 * sixth] or values), mean(values[-sixth:])


def watch(
    run: Path, seconds: float, over: threading.Event, tell: Callable[[dict[str, Any]], None]
) -> list[dict[str, float]]:
    """Look at the job every second for so long, from its first checkpoint on; then end it."""
    samples: list[dict[str, float]] = []
    while not over.wait(0.5) and not any((run / "checkpoints").glob("full-*")):
        pass
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not over.wait(1.0):
        samples.append(seen(run))
        if len(samples) % 60 == 0:
            tell({"minute": len(samples) // 60, **samples[-1]})
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGINT)
    return samples


def tell(line: dict[str, Any]) -> None:
    print(json_text(line), flush=True)


def soak(folder: Path, arguments: argparse.Namespace) -> bool:
    """Run the job; return whether nothing has grown."""
    # What takes hours to be replaced is replaced within seconds.
    assert MetricsFiles.__init__.__kwdefaults__ is not None
    MetricsFiles.__init__.__kwdefaults__.update(max_bytes=1 << 18, max_files=4)
    BatchFile.__init__.__defaults__ = (2000,)
    over, samples = threading.Event(), []
    stream = threading.Thread(target=write_stream, args=(folder / "stream", arguments.rate, over))
    watching = threading.Thread(
        target=lambda: samples.extend(watch(folder / "run", 60 * arguments.minutes, over, tell))
    )
    # A shell that starts it in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream.start()
    watching.start()
    try:
        Trainer(JobConfig.from_dict(job_of(folder))).fit()
    except KeyboardInterrupt:
        pass
    finally:
        over.set()
        stream.join()
        watching.join()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    tell({"samples": last["samples"], "rows": last["rows"], "seconds": len(samples)})
    good = bool(samples)
    for figure in FIGURES:
        before, after = growth(samples, figure)
        grown = after / before - 1 if before else 0.0
        good = good and grown <= arguments.most
        tell({"figure": figure, "after_a_sixth": before, "at_the_end": after, "grown": grown})
    return good


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(Path(folder), arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
