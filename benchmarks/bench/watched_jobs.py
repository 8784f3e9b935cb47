"""Jobs that run as processes of their own, whose servers are looked at meanwhile."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.job_process import started


def write_samples(path: Path, many: npt.NDArray[np.int64]) -> None:
    """Write training data: two dense columns, one of few ids, and `many`, one of a sample."""
    rng, samples = np.random.default_rng(1), many.size
    dense = rng.exponential(2.0, (2, samples)).astype(np.float32)
    few = rng.integers(0, 2000, samples)
    logit = 0.3 * (few % 7) - 1 + 0.2 * dense[0]
    label = (rng.random(samples) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    table = pa.table({"label": label, "d1": dense[0], "d2": dense[1], "few": few, "many": many})
    pq.write_table(table, path, row_group_size=max(1, samples // 8))


def job_of(data: Path, run: Path, *, batch: int, kill_at: int | None, **sections: Any) -> Any:
    """Return the job, as a job file has it; its first server dies at a step.

    Args:
        sections: that are added to the job's, `cluster` with its `servers`.
    """
    kill = {"kind": "kill", "role": "server", "index": [0], "at_step": kill_at}
    cluster = {
        "workers": 2, "start_timeout_seconds": 600, "inject": [] if kill_at is None else [kill],
        **sections.pop("cluster"),
    }  # fmt: skip
    return {
        "seed": 3,
        "data": {
            "train": str(data), "dense": ["d1", "d2"], "sparse": ["few", "many"],
            "batch_size": batch,
        },
        "embedding": {"dim": 16},
        "model": {"type": "dlrm", "bottom_mlp": [16], "top_mlp": [16]},
        "training": {"mode": "sync", "global_batch": 2 * batch},
        "cluster": cluster,
        "run": {"dir": str(run), "progress_every_seconds": 0.5, "allow_faults": True},
        **sections,
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

    def recovery(self) -> tuple[dict[str, Any], float]:
        """Return what result.json has of the only recovery, and when its server was killed.

        Raises:
            RuntimeError: the job was over before.
        """
        if self.killed_at is None:
            raise RuntimeError("the job was over before a server could be killed")
        (recovery,) = self.result["recoveries"]
        return recovery, self.killed_at


def train(folder: Path, job: dict[str, Any]) -> Ran:
    """Run a job as a process, and look at its servers meanwhile.

    Raises:
        RuntimeError: it failed.
    """
    run, ran = Path(job["run"]["dir"]), Ran()
    seen: set[int] = set()
    seen_at = time.time()
    with started(folder, job) as running:
        while running.runs():
            time.sleep(0.05)
            servers = _servers(running.process.pid)
            ran.servers_bytes = max(ran.servers_bytes, sum(map(_resident, servers)))
            pids = {server.pid for server in servers}
            if seen - pids and ran.killed_at is None and running.runs():
                ran.killed_at = seen_at
            seen, seen_at = pids, time.time()
        if running.process.returncode:
            raise RuntimeError(running.said())
    ran.result = json.loads((run / "result.json").read_text())
    ran.wire_bytes = int(running.metrics()[-1]["wire_bytes"]["pushed_and_pulled_by_workers"])
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
