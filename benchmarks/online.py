"""Measure jobs on a stream: from a sample's arrival to its prediction; one JSON line a figure.

    python benchmarks/online.py                    # under ten minutes on two cores
    python benchmarks/online.py --quick            # little data, once: see that it runs

First how fast a job trains at most: in batch mode, on a stream of which all is there, and on that
with a delta every second, in turns. Then rows arrive at a share of that, a server follows the run
and is asked all the time. What each line means: docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from bench.command_line import finish
from bench.lines import emit
from bench.online_times import Times, latencies, quantiles, trained_rate

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 300.0
SHARES = (0.1, 0.5, 0.9)
FILE_SECONDS = 0.25
COLUMNS = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
TOKEN = "a token of the benchmark"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000, help="of the turns (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="turns (%(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each rate (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of the job (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(rows=40_000, repeats=1, seconds=12.0)
        arguments = parser.parse_args(argv)
    if arguments.rows < 20_000 or min(arguments.repeats, arguments.workers) < 1:
        parser.error("--rows must be >= 20000, --repeats and --workers >= 1")
    if arguments.seconds < 10:
        parser.error("--seconds must be >= 10")
    return arguments


def job_of(run: Path, data: dict[str, Any], *, workers: int, **checkpoint: Any) -> dict[str, Any]:
    """Return a small DLRM of 26 features in async."""
    dense, sparse = COLUMNS
    return {
        "seed": 1,
        "data": {
            "dense": dense, "dense_transform": "log1p", "sparse": sparse, "batch_size": 512, **data,
        },
        "embedding": {"dim": 8},
        "model": {"type": "dlrm", "bottom_mlp": [64, 32], "top_mlp": [64, 32]},
        "training": {
            "mode": "async", "global_batch": 1024,
            "online": {"until": {"idle_seconds": 4}} if "stream" in data else {},
        },
        "cluster": {"workers": workers, "servers": 1, "start_timeout_seconds": 300},
        "checkpoint": {"every_seconds": None, "full_every": 1000, "keep": 1, **checkpoint},
        "run": {"dir": str(run), "progress_every_seconds": 0.5},
    }  # fmt: skip


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**environment, "PYTHONPATH": str(ROOT), "SYNCHROMESH_PUBLISH_TOKEN": TOKEN}


@contextmanager
def started(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of ours beside the block; it is ended after it."""
    command = [sys.executable, "-m", "synchromesh", *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=_environment(), stdout=subprocess.DEVNULL, stderr=file
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=120)


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        failed = process.wait(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        text = log.read_text()[-2000:]
        raise RuntimeError(f"it takes longer than {MOST_SECONDS:.0f} s: {text}") from error
    if failed:
        raise RuntimeError(log.read_text()[-2000:])


def train(folder: Path, name: str, job: dict[str, Any]) -> float:
    """Train a job to its end; return its samples a second, without its start."""
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    file.write_text(json.dumps(job))
    with started(log, "train", str(file)) as process:
        _wait(process, log)
    lines = (Path(job["run"]["dir"]) / "metrics.jsonl").read_text().splitlines()
    return trained_rate([json.loads(line) for line in lines])


def fastest(folder: Path, files: list[Path], arguments: argparse.Namespace) -> float:
    """Print how fast the job trains at most; return the rate with a delta every second."""
    stream = folder / "all"
    stream.mkdir()
    for number, path in enumerate(files):
        os.link(path, stream / f"part-{number:05d}.parquet")
    paths = {"train": [str(path) for path in files], "order": "sequential"}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "batch": (paths, {}),
        "stream": ({"stream": {"dir": str(stream)}}, {}),
        "stream_with_deltas": ({"stream": {"dir": str(stream)}}, {"every_seconds": 1}),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(arguments.repeats):
        for name, (data, checkpoint) in kinds.items():
            run = folder / f"{name}-{repeat}"
            job = job_of(run, data, workers=arguments.workers, **checkpoint)
            rates[name].append(train(folder, name, job))
    for name, found in rates.items():
        emit(f"{name}_rate", median(found), "samples/s", min=min(found), max=max(found))
    pairs = list(zip(rates["batch"], rates["stream"], strict=True))
    ratios = [online / batch for batch, online in pairs]
    emit("stream_against_batch", median(ratios), "of its rate", target=0.9, min=min(ratios))
    pairs = list(zip(rates["stream"], rates["stream_with_deltas"], strict=True))
    lost = [1 - cut / calm for calm, cut in pairs]
    emit("delta_every_second", median(lost), "of the rate lost", max=max(lost))
    return median(rates["stream_with_deltas"])


def follow(
    folder: Path, files: list[Path], rate: float, arguments: argparse.Namespace, *, over: str
) -> Times:
    """Have rows arrive at a rate, and a server follow the job; return when what was where.

    Args:
        over: `disk`: the server sees the run directory; `sockets`: the job publishes.
    """
    from serving import Client
    from serving.endpoint.server import free_port
    from serving.running import ServeOptions, Serving
    from serving.session import SessionOptions

    name = f"{over}-{round(rate)}"
    run, stream, log = folder / name, folder / f"{name}-stream", folder / f"{name}.log"
    stream.mkdir()
    # A job plans by its first file, and begins once it is there.
    first = pq.ParquetFile(files[0]).read_row_group(0).slice(0, 1024)
    pq.write_table(first, stream / "0-first.parquet")
    port = free_port("127.0.0.1")
    publish = {"publish": {"port": port}} if over == "sockets" else {}
    data = {"stream": {"dir": str(stream), "poll_seconds": 0.05, "close_seconds": 0.5}}
    job = job_of(run, data, workers=arguments.workers, every_seconds=1, **publish)
    job["training"]["online"] = {}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(job))
    inputs = [str(path) for path in files]
    replay = ["data", "replay", *inputs, "--to", str(stream), "--rate", str(rate)]
    replay += ["--every", str(FILE_SECONDS), "--loops", "1000"]
    times = Times(run / "checkpoints", stream)
    with started(log, "train", str(file)) as training:
        _until(lambda: (run / "control.json").exists(), training, log)
        with started(folder / "replay.log", *replay):
            _until(lambda: any((run / "checkpoints").glob("full-*/manifest.json")), training, log)
            serving = Serving(
                ServeOptions(
                    source=str(run) if over == "disk" else f"tcp://127.0.0.1:{port}",
                    session=SessionOptions(name="online"),
                    port=0,
                    sessions=0,
                    forms=str(folder / f"{name}-forms"),
                    publish_token=TOKEN,
                )
            )
            with times.asked(serving, Client(address=serving.address, model="online"), COLUMNS):
                time.sleep(arguments.seconds)
    return times


def _until(there: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + MOST_SECONDS
    while not there():
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(log.read_text()[-2000:])
        time.sleep(0.05)


def fresh(folder: Path, files: list[Path], most: float, arguments: argparse.Namespace) -> None:
    """Print how long it takes from a sample's arrival on."""
    shares = SHARES[1:2] if arguments.quick else SHARES
    cases = [(share, "disk") for share in shares] + [(0.5, "sockets")]
    for share, over in cases:
        times = follow(folder, files, share * most, arguments, over=over)
        found = latencies(times, skip_seconds=arguments.seconds / 4)
        size = {"share": share, "over": over, "rate": share * most}
        for stage in ("readable", "applied", "served"):
            p50, p99 = quantiles(found[stage])
            goal = {"target": 10.0, "at_most": True} if stage == "served" else {}
            emit(f"arrival_to_{stage}", p99, "s, p99", p50=p50, samples=len(found[stage]),
                 **size, **goal)  # fmt: skip
        p50, p99 = quantiles(times.ages)
        emit("age_in_answers", p99, "s, p99", p50=p50, answers=len(times.ages), **size)


def run(arguments: argparse.Namespace) -> None:
    emit("machine", None, "", cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ["--rows", str(arguments.rows), "--files", "12", "--row-group-rows", "8192"]
        with started(folder / "data.log", "data", "criteo-like", *rows, "--out", "data") as made:
            _wait(made, folder / "data.log")
        files = sorted((folder / "data" / "train").glob("*.parquet"))
        most = fastest(folder, files, arguments)
        fresh(folder, files, most, arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
