"""Synchronous training against a trainer written anew: float64, one process, plain NumPy.

Nothing of the project computes here but the initial values. Samples are read with pyarrow, keys
live in dicts, gradients are written out for this one small DLRM.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding import EmbeddingVariable
from ps.checkpoint.read import CheckpointReader
from scheduler import JobConfig, Trainer
from scheduler.job.specs import model_spec, store_spec
from worker.models import build_model, initial_parameters

DIM, BATCH, M, EPOCHS = 3, 64, 4, 2
TABLE_LR, DENSE_LR, TABLE_ACC, DENSE_ACC = 0.05, 0.02, 1e-2, 1e-2
TABLES = ("a", "b", "tags")


def job(samples: Path, run_dir: Path, servers: int, limit: float | None) -> JobConfig:
    def adagrad(rate: float, initial: float) -> dict[str, Any]:
        return {"type": "adagrad", "learning_rate": rate, "initial_accumulator": initial}

    return JobConfig.from_dict(
        {
            "data": {
                "train": str(samples / "train-*.parquet"),
                "dense": ["d1", "d2"],
                "dense_transform": "log1p",
                "sparse": ["a", "b", {"column": "tags", "combiner": "mean"}],
                "batch_size": BATCH,
                "epochs": EPOCHS,
            },
            "embedding": {
                "dim": DIM,
                "optimizer": adagrad(TABLE_LR, TABLE_ACC),
                "track_usage": True,
            },
            "model": {
                "type": "dlrm",
                "bottom_mlp": [5],
                "top_mlp": [6],
                "optimizer": adagrad(DENSE_LR, DENSE_ACC),
                "clip_global_norm": limit,
            },
            "training": {"mode": "sync", "global_batch": BATCH * M},
            "cluster": {"workers": 2, "servers": servers},
            "run": {"dir": str(run_dir)},
        }
    )


def read_samples(samples: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(samples.glob("train-*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    for row in rows:
        dense = [0.0 if row[c] is None else max(row[c], 0.0) for c in ("d1", "d2")]
        row["dense"] = np.float32(np.log1p(np.array(dense, np.float32))).astype(np.float64)
        row["bags"] = [
            [] if row["a"] is None else [row["a"]],
            [] if row["b"] is None else [row["b"]],
            row["tags"],
        ]
    return rows


def batches_of_an_epoch(rows: int) -> list[list[int]]:
    """Row numbers of each batch: M lanes of consecutive rows, batch i from lane i mod M."""
    total = -(-rows // BATCH)
    sizes = [min(BATCH, rows - i * BATCH) for i in range(total)]
    batches: list[list[int]] = [[] for _ in range(total)]
    start = 0
    for lane in range(M):
        for i in range(lane, total, M):
            batches[i] = list(range(start, start + sizes[i]))
            start += sizes[i]
    assert start == rows
    return batches


class Reference:
    """A DLRM 2-5-3 / pairs / 9-6-1 with Adagrad on everything."""

    def __init__(self, config: JobConfig) -> None:
        spec = model_spec(config)
        store = store_spec(config, spec)
        model = build_model(spec)
        flat = initial_parameters(model, spec.seed).astype(np.float64)
        self.weights: list[np.ndarray] = []
        start = 0
        for parameter in model.parameters:
            self.weights.append(flat[start : start + parameter.size].reshape(parameter.shape))
            start += parameter.size
        self.accumulators = [np.full_like(w, DENSE_ACC) for w in self.weights]
        self.variables = {table.name: EmbeddingVariable(table) for table in store.tables}
        self.rows: dict[tuple[str, int], np.ndarray] = {}
        self.row_accumulators: dict[tuple[str, int], np.ndarray] = {}
        self.frequency: dict[tuple[str, int], int] = {}
        self.limit = config.model.clip_global_norm
        self.clipped: list[bool] = []

    def row(self, table: str, key: int) -> np.ndarray:
        if (table, key) not in self.rows:
            values, admitted = np.empty((1, DIM), np.float32), np.empty(1, np.uint8)
            self.variables[table].pull(np.array([key]), None, values, admitted)
            self.rows[table, key] = values[0].astype(np.float64)
            self.row_accumulators[table, key] = np.full(DIM, TABLE_ACC)
            self.frequency[table, key] = 0
        return self.rows[table, key]

    def step(self, samples: list[dict[str, Any]]) -> None:
        grads = [np.zeros_like(w) for w in self.weights]
        row_grads: dict[tuple[str, int], np.ndarray] = {}
        for sample in samples:
            self.add_gradients(sample, grads, row_grads)
        n = len(samples)
        factor = self.factor_of([grad / n for grad in grads])
        for weight, accumulator, grad in zip(self.weights, self.accumulators, grads, strict=True):
            accumulator += (factor * grad / n) ** 2
            weight -= DENSE_LR * (factor * grad / n) / np.sqrt(accumulator)
        for name, grad in row_grads.items():
            self.row_accumulators[name] += (grad / n) ** 2
            self.rows[name] -= TABLE_LR * (grad / n) / np.sqrt(self.row_accumulators[name])

    def factor_of(self, means: list[np.ndarray]) -> float:
        norm = np.linalg.norm(np.concatenate([mean.ravel() for mean in means]))
        self.clipped.append(self.limit is not None and norm > self.limit)
        return self.limit / norm if self.limit is not None and self.clipped[-1] else 1.0

    def add_gradients(
        self,
        sample: dict[str, Any],
        grads: list[np.ndarray],
        row_grads: dict[tuple[str, int], np.ndarray],
    ) -> None:
        w0, b0, w1, b1, w2, b2, w3, b3 = self.weights
        x = sample["dense"]
        hidden = np.maximum(x @ w0 + b0, 0)
        bottom = np.maximum(hidden @ w1 + b1, 0)
        vectors = [bottom]
        for table, bag in zip(TABLES, sample["bags"], strict=True):
            rows = [self.row(table, key) for key in bag]
            for key in bag:
                self.frequency[table, key] += 1
            vectors.append(np.mean(rows, axis=0) if rows else np.zeros(DIM))
        pairs = [(i, j) for i in range(4) for j in range(i)]
        top_in = np.concatenate([bottom, [vectors[i] @ vectors[j] for i, j in pairs]])
        top_hidden = np.maximum(top_in @ w2 + b2, 0)
        logit = (top_hidden @ w3 + b3).item()

        d_logit = 1 / (1 + np.exp(-logit)) - sample["label"]
        grads[6] += d_logit * top_hidden[:, None]
        grads[7] += d_logit
        d_top = d_logit * w3[:, 0] * (top_hidden > 0)
        grads[4] += np.outer(top_in, d_top)
        grads[5] += d_top
        d_in = w2 @ d_top
        d_vectors = [np.zeros(DIM) for _ in range(4)]
        d_vectors[0] += d_in[:DIM]
        for (i, j), d in zip(pairs, d_in[DIM:], strict=True):
            d_vectors[i] += d * vectors[j]
            d_vectors[j] += d * vectors[i]
        for table, bag, d in zip(TABLES, sample["bags"], d_vectors[1:], strict=True):
            for key in bag:
                row_grads.setdefault((table, key), np.zeros(DIM))
                row_grads[table, key] += d / len(bag)
        d_bottom = d_vectors[0] * (bottom > 0)
        grads[2] += np.outer(hidden, d_bottom)
        grads[3] += d_bottom
        d_hidden = (w1 @ d_bottom) * (hidden > 0)
        grads[0] += np.outer(x, d_hidden)
        grads[1] += d_hidden


@cache
def trained(samples: Path, limit: float | None) -> Reference:
    """What the job must come to, on any number of servers."""
    reference = Reference(job(samples, samples / "no run", 1, limit))
    rows = read_samples(samples)
    batches = batches_of_an_epoch(len(rows))
    for _ in range(EPOCHS):
        for first in range(0, len(batches), M):
            chosen = [i for batch in batches[first : first + M] for i in batch]
            reference.step([rows[i] for i in chosen])
    return reference


@pytest.mark.parametrize(("servers", "limit"), [(1, None), (2, None), (2, 0.1)])
def test_sync_equals_the_reference_trainer(
    jobs_in_threads: None, samples: Path, tmp_path: Path, servers: int, limit: float | None
) -> None:
    config = job(samples, tmp_path / "run", servers, limit)
    reference = trained(samples, limit)
    assert set(reference.clipped) == ({False} if limit is None else {False, True})

    result = Trainer(config).fit()

    reader = CheckpointReader(result.checkpoint)
    expected = np.concatenate([w.ravel() for w in reference.weights])
    np.testing.assert_allclose(reader.dense_vector(), expected, rtol=0, atol=1e-5)
    seen = 0
    for table in reader.store.tables:
        for entries in reader.rows(table):
            for key, vector, slots, frequency in zip(
                entries.keys, entries.vectors, entries.slots, entries.frequency, strict=True
            ):
                name = (table.name, int(key))
                np.testing.assert_allclose(vector, reference.rows[name], rtol=0, atol=1e-5)
                accumulator = reference.row_accumulators[name]
                np.testing.assert_allclose(slots, accumulator, rtol=1e-4, atol=1e-6)
                assert frequency == reference.frequency[name]
                seen += 1
    assert seen == len(reference.rows)
