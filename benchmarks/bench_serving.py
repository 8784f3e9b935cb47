"""Serving: what a serving form costs, how fast it is opened, and predictions from it in process.

Prints a line of JSON for each figure. The model is that of jobs/dlrm.yaml with random rows, so that
its tables are as large as asked for.

    .venv/bin/python benchmarks/bench_serving.py --rows 10000000
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from embedding import TableEntries
from ps.checkpoint.manifest import Manifest, write_manifest
from ps.checkpoint.write import write_shard
from ps.shard.shard import Shard
from runtime.strict_json import json_text
from scheduler import JobConfig
from scheduler.job.specs import feature_spec, model_spec, store_spec
from serving import Model
from worker.data.batch import Bags, Batch
from worker.models import build_model, initial_parameters

JOB = Path(__file__).resolve().parent.parent / "jobs" / "dlrm.yaml"
ITEMS = (1, 8, 64, 256)


def write_model(run: Path, rows: int) -> int:
    """Write a full checkpoint with so many rows in all tables; return how many there are."""
    config = JobConfig.from_yaml(JOB, ["cluster.servers=1"])
    model = model_spec(config)
    store = store_spec(config, model)
    shard = Shard(store, 0)
    shard.initialize(0, dense=initial_parameters(build_model(model), 1))
    rng = np.random.default_rng(1)
    each = rows // len(shard.tables)
    for table in shard.tables:
        ones = np.ones(each, np.int64)
        vectors = rng.standard_normal((each, table.spec.dim), np.float32)
        slots = np.ones_like(vectors)
        table.import_rows(TableEntries(np.arange(each), ones, ones, vectors, slots))
    path = run / "checkpoints" / "full-000000000001"
    files = write_shard(path, shard)
    features = asdict(feature_spec(config))
    write_manifest(
        path,
        Manifest(
            kind="full",
            step=1,
            recovery_epoch=0,
            store=store.to_json(),
            model={"spec": asdict(model), "features": features},
            job={},
            files=tuple(files),
        ),
    )
    return each * len(shard.tables)


def batch_of(rng: np.random.Generator, model: Model, items: int, each: int) -> Batch:
    """Return a request of random keys, most of them known."""
    features = model.schema.features
    dense = rng.exponential(size=(items, len(features.dense))).astype(np.float32)
    sparse = tuple(Bags(rng.integers(0, each * 11 // 10, items)) for _ in features.sparse)
    return Batch(np.empty(0, np.float32), dense, sparse)


def milliseconds(model: Model, items: int, each: int, repetitions: int) -> list[float]:
    """Return how long each of some predictions took."""
    rng = np.random.default_rng(items)
    taken = []
    for _ in range(repetitions):
        batch = batch_of(rng, model, items, each)
        began = time.perf_counter()
        model.predict_batch(batch)
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=300)
    options = parser.parse_args()
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rows = write_model(run, options.rows)
        began = time.perf_counter()
        with Model.open(run) as model:
            made = time.perf_counter() - began
            size = model.current.form.num_bytes
        began = time.perf_counter()
        with Model.open(run) as model:
            opened = time.perf_counter() - began
            told = {"rows": rows, "form_bytes": size}
            tell(figure="form", **told, make_seconds=made, open_seconds=opened)
            each = rows // len(model.current.tables)
            for items in ITEMS:
                milliseconds(model, items, each, 20)
                taken = milliseconds(model, items, each, options.repetitions)
                p99 = statistics.quantiles(taken, n=100)[98]
                tell(figure="in process", items=items, p50_ms=statistics.median(taken), p99_ms=p99)


def tell(**figures: object) -> None:
    rounded = {n: round(v, 3) if isinstance(v, float) else v for n, v in figures.items()}
    print(json_text(rounded), flush=True)


if __name__ == "__main__":
    main()
