"""One pass over samples in their order, each predicted before it is learnt: a line a learner.

    python benchmarks/beside_online.py --data criteo_tb80k      # a folder of files like Criteo's
    python benchmarks/beside_online.py                          # generated rows, with planted drift

Our jobs on a stream stand beside Vowpal Wabbit and River, where these are installed
(`pip install 'synchromesh[bench]'`): the progressive AUC and log loss of the same rows in the same
order, and the seconds that each takes. Generated rows are trained in shuffled order, too. What each
line means: docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench.command_line import finish
from bench.drifting import drifting
from bench.lines import emit
from bench.other_learners import RIVER, VOWPAL_WABBIT, Samples, river, vowpal_wabbit
from worker.data.planning import find_files
from worker.metrics import exact_auc

ROOT = Path(__file__).resolve().parents[1]
DENSE, SPARSE = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
# Longer than any pass: all samples are in one window, but where the month ends.
WINDOW_SECONDS = 31 * 86400


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="folder, or one of train, valid and test; none: rows with planted drift"
    )
    parser.add_argument("--rows", type=int, default=80_000, help="of the pass (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of our jobs (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.rows < 1 or arguments.batch_size < 1:
        parser.error("--rows and --batch-size must be >= 1")
    return arguments


def read(folder: Path, rows: int) -> pa.Table:
    """Return the first rows of train, valid and test, as far as they are there, in their order."""
    parts = [folder / part for part in ("train", "valid", "test")]
    files = find_files([str(part) for part in parts if part.is_dir()] or [str(folder)])
    columns = ["label", *DENSE, *SPARSE]
    return pa.concat_tables([pq.read_table(f.path, columns=columns) for f in files]).slice(0, rows)


def models_of(batch_size: int) -> dict[str, dict[str, Any]]:
    """Return our models: as they are by default, and with settings for one pass."""
    # Gradients are means over a batch: of single samples the sums of squares would begin at 1.
    start = 1 / batch_size**2
    ftrl = {"type": "ftrl", "learning_rate": 0.05, "initial_accumulator": start}
    layers = {"type": "deepfm", "mlp": [32, 16]}
    return {
        "deepfm": {"model": layers, "embedding": {"dim": 8}},
        "deepfm, for one pass": {
            "model": {
                **layers,
                "optimizer": {
                    "type": "adagrad", "learning_rate": 0.01, "initial_accumulator": 1e-3,
                },
            },
            "embedding": {
                "dim": 8,
                "optimizer": {
                    "type": "adagrad", "learning_rate": 0.02, "initial_accumulator": start,
                },
                "first_order_optimizer": ftrl,
            },
        },
        "linear, ftrl": {
            "model": {"type": "linear", "optimizer": ftrl},
            "embedding": {"dim": 1, "initializer": {"type": "zeros"}, "optimizer": ftrl},
        },
    }  # fmt: skip


def job_of(run: Path, stream: Path, model: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Return a job that trains batch after batch, each by the parameters that the last one left."""
    return {
        "seed": 1,
        "data": {
            "stream": {"dir": str(stream)},
            "dense": DENSE,
            "dense_transform": "log1p",
            "sparse": SPARSE,
            "batch_size": batch_size,
        },
        **model,
        "training": {
            "mode": "sync",
            "global_batch": batch_size,
            "online": {"window_seconds": WINDOW_SECONDS, "until": {"idle_seconds": 1}},
        },
        "cluster": {"workers": 1, "servers": 1, "start_timeout_seconds": 300},
        "checkpoint": {"every_seconds": None},
        "run": {"dir": str(run), "progress_every_seconds": 0.5},
    }


def train(folder: Path, job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Train a job to its end; return its window and the seconds of its training."""
    file, run = folder / "job.json", Path(job["run"]["dir"])
    file.write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "synchromesh", "train", str(file)],
        cwd=folder, capture_output=True, text=True,
        env={**environment, "PYTHONPATH": f"{ROOT}:{environment.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    windows = [window for line in lines for window in line["windows"]]
    if len(windows) != 1:
        raise RuntimeError(f"the samples are in {len(windows)} windows; run it again")
    return windows[0], lines[-1]["train_seconds"]


def ours(folder: Path, table: pa.Table, batch_size: int, *, order: str = "as they come") -> None:
    folder.mkdir()
    stream = folder / "stream"
    stream.mkdir()
    pq.write_table(table, stream / "part-0.parquet")
    for name, model in models_of(batch_size).items():
        run = folder / name.replace(" ", "-").replace(",", "")
        window, seconds = train(folder, job_of(run, stream, model, batch_size))
        _emit(
            "synchromesh", name, window["auc"], window["logloss"], window["samples"], seconds,
            order=order,
        )  # fmt: skip


def others(table: pa.Table) -> None:
    samples = Samples.of(table, dense=DENSE, sparse=SPARSE)
    learners = [("vowpal_wabbit", name) for name in VOWPAL_WABBIT] + [("river", n) for n in RIVER]
    for project, name in learners:
        began = time.perf_counter()
        if project == "river":
            scores = river(samples, name)
            probabilities = scores
        else:
            scores = vowpal_wabbit(samples, VOWPAL_WABBIT[name])
            probabilities = None if scores is None else 1 / (1 + np.exp(-scores.astype(float)))
        if scores is None or probabilities is None:
            emit(f"progressive_auc.{project}", None, "", model=name, missing="it is not installed")
            continue
        seconds = time.perf_counter() - began
        auc, loss = exact_auc(scores, samples.labels), log_loss(probabilities, samples.labels)
        _emit(project, name, auc, loss, len(samples.labels), seconds)


def log_loss(probabilities: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    right = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(right, 1e-15)).mean())


def with_drift(folder: Path, rows: int, batch_size: int) -> pa.Table:
    """Print what drawn rows can be predicted like at best, and our jobs on them in any order."""
    drawn = drifting(rows, dense=DENSE, sparse=SPARSE)
    labels = drawn.table.column("label").to_numpy()
    best = exact_auc(drawn.probabilities.astype(np.float32), labels)
    emit("best_auc", best, "", logloss=log_loss(drawn.probabilities, labels), samples=rows)
    ours(folder / "in-order", drawn.table, batch_size)
    shuffled = drawn.table.take(np.random.default_rng(0).permutation(rows))
    ours(folder / "shuffled", shuffled, batch_size, order="shuffled")
    return drawn.table


def _emit(
    project: str, model: str, auc: float, logloss: float, samples: int, seconds: float,
    *, order: str = "as they come",
) -> None:  # fmt: skip
    emit(
        f"progressive_auc.{project}", auc, "", model=model, logloss=logloss, samples=samples,
        seconds=seconds, order=order,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="beside-online-") as name:
            folder = Path(name)
            if arguments.data is None:
                table = with_drift(folder, arguments.rows, arguments.batch_size)
            else:
                table = read(Path(arguments.data).expanduser(), arguments.rows)
                ours(folder / "recorded", table, arguments.batch_size)
        others(table)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
