"""Measure standbys: what they cost a job, and how long a promotion takes; one JSON line a figure.

    python benchmarks/standbys.py                  # 400,000 samples, jobs in turns, three times
    python benchmarks/standbys.py --quick          # little data, once: see that it runs

The same job in `sync` runs without standbys and with them, and with them while a server is ended
by SIGKILL, each as a process of its own. What each line means: docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.command_line import finish
from bench.lines import emit

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 600.0
KILL_AT = 0.3  # of the steps


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000, help="default: %(default)s")
    parser.add_argument("--keys", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(samples=40_000, keys=5_000, repeats=1)
        arguments = parser.parse_args(argv)
    if arguments.samples < 20 * arguments.batch or min(arguments.repeats, arguments.keys) < 1:
        parser.error("--samples must be >= 20 batches, --keys and --repeats >= 1")
    return arguments


def write_samples(path: Path, samples: int, keys: int) -> None:
    """Write training data: two dense columns, one of few and one of many ids."""
    rng = np.random.default_rng(1)
    dense = rng.exponential(2.0, (2, samples)).astype(np.float32)
    few = rng.integers(0, 2000, samples)
    logit = 0.3 * (few % 7) - 1 + 0.2 * dense[0]
    label = (rng.random(samples) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    many = rng.zipf(1.2, samples) % keys
    table = pa.table({"label": label, "d1": dense[0], "d2": dense[1], "few": few, "many": many})
    pq.write_table(table, path, row_group_size=max(1, samples // 8))


def job_of(
    data: Path, run: Path, *, batch: int, standby: int, kill_at: int | None
) -> dict[str, Any]:
    """Return the job, as a job file has it; its first server dies at a step."""
    kill = {"kind": "kill", "role": "server", "index": [0], "at_step": kill_at}
    return {
        "seed": 3,
        "data": {
            "train": str(data), "dense": ["d1", "d2"], "sparse": ["few", "many"],
            "batch_size": batch,
        },
        "embedding": {"dim": 16},
        "model": {"type": "dlrm", "bottom_mlp": [16], "top_mlp": [16]},
        "training": {"mode": "sync", "global_batch": 2 * batch},
        "cluster": {
            "workers": 2, "servers": 2, "standby": standby, "start_timeout_seconds": 600,
            "inject": [] if kill_at is None else [kill],
        },
        "checkpoint": {"every_seconds": None},
        "run": {"dir": str(run), "progress_every_seconds": 0.5, "allow_faults": True},
    }  # fmt: skip


@dataclass(slots=True)
class Ran:
    """What a job came to.

    Args:
        result: its result.json.
        wire_bytes: that workers sent to servers and standbys and received of them.
        servers_bytes: the most memory that servers and standbys had resident together.
        killed_at: when the first server that died was last seen alive, seconds since 1970.
    """

    result: dict[str, Any] = field(default_factory=dict)
    wire_bytes: int = 0
    servers_bytes: int = 0
    killed_at: float | None = None


def train(folder: Path, job: dict[str, Any]) -> Ran:
    """Run a job as a process, and look at its servers meanwhile.

    Raises:
        RuntimeError: it failed.
    """
    file, run = folder / "job.yaml", Path(job["run"]["dir"])
    file.write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "synchromesh", "train", str(file)]
    ran, ends = Ran(), time.monotonic() + MOST_SECONDS
    seen: set[int] = set()
    seen_at = time.time()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            while process.poll() is None:
                time.sleep(0.05)
                if time.monotonic() > ends:
                    raise RuntimeError(f"it takes longer than {MOST_SECONDS:.0f} s")
                servers = _servers(process.pid)
                ran.servers_bytes = max(ran.servers_bytes, sum(map(_resident, servers)))
                pids = {server.pid for server in servers}
                if seen - pids and ran.killed_at is None and process.poll() is None:
                    ran.killed_at = seen_at
                seen, seen_at = pids, time.time()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    ran.result = json.loads((run / "result.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    ran.wire_bytes = int(last["wire_bytes"]["pushed_and_pulled_by_workers"])
    return ran


def _servers(pid: int) -> list[psutil.Process]:
    """Return the servers and standbys below a process, the oldest first."""
    found = []
    try:
        for each in psutil.Process(pid).children(recursive=True):
            try:
                if "ServerActor" in " ".join(each.cmdline()[:1]):
                    found.append((each.create_time(), each.pid, each))
            except psutil.Error:
                continue
    except psutil.Error:
        return []
    return [each for _, _, each in sorted(found, key=lambda one: one[:2])]


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Print all figures."""
    data = folder / "train.parquet"
    write_samples(data, arguments.samples, arguments.keys)
    runs: dict[str, list[Ran]] = {"without": [], "with": [], "killed": []}
    kill_at = int(KILL_AT * arguments.samples / (2 * arguments.batch))
    for repeat in range(arguments.repeats):
        for name, found in runs.items():
            job = job_of(
                data, folder / f"{name}-{repeat}", batch=arguments.batch,
                standby=int(name != "without"),
                kill_at=kill_at if name == "killed" else None,
            )  # fmt: skip
            found.append(train(folder, job))
    digests = {ran.result["model_digest"] for found in runs.values() for ran in found}
    if len(digests) > 1:
        raise RuntimeError(f"the models differ: {sorted(digests)}")
    size = {"samples": arguments.samples, "batch": arguments.batch, "repeats": arguments.repeats}
    for name in ("without", "with"):
        results = [ran.result for ran in runs[name]]
        label = f"{name}_standbys"
        emit(label, median(r["samples_per_second"] for r in results), "samples/s", **size)
        workers = [ran.wire_bytes / arguments.samples for ran in runs[name]]
        emit(f"{label}_wire", median(workers), "bytes a sample", **size)
        memory = median(ran.servers_bytes for ran in runs[name])
        emit(f"{label}_memory", memory / 1e6, "MB of servers and standbys", **size)
    slower = [
        w.result["samples_per_second"] / s.result["samples_per_second"] - 1
        for w, s in zip(runs["without"], runs["with"], strict=True)
    ]
    emit("slower", median(slower), "of the rate with them", min=min(slower), max=max(slower))
    for ran in runs["killed"]:
        _emit_promotion(ran)


def _emit_promotion(ran: Ran) -> None:
    if ran.killed_at is None:
        raise RuntimeError("the job was over before a server could be killed")
    (recovery,) = ran.result["recoveries"]
    if not recovery["promoted"]:
        raise RuntimeError(f"no standby was promoted: {recovery}")
    noticed = recovery["time"] - ran.killed_at
    emit("promotion", noticed + recovery["seconds"], "s from the kill to the next step", target=2.0,
         at_most=True, noticed_s=noticed, redone_steps=recovery["redone_steps"],
         standbys_at_the_end=len(ran.result["standbys"]))  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    emit("machine", None, "", cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
