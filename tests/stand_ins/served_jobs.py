"""Models with every kind of table, trained and saved without a job: a full cut, then deltas."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.optimizers.rule import step_scalars
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.manifest import Manifest, Parent, write_manifest
from ps.client.deduplicate import Deduplicator
from ps.messages.records import Freeze
from ps.routing import Routing
from ps.shard.shard import Shard
from scheduler import JobConfig
from scheduler.job.specs import feature_spec, model_spec, store_spec
from worker.contract import DataContract
from worker.data.columns import columns_from_table
from worker.models import build_model, initial_parameters
from worker.step.choosing import choose_rows
from worker.step.preparing import Preparer

_EPOCH = 3

ADAM = {"type": "adam", "learning_rate": 0.01}
TAGS = {"name": "tags", "column": "tags", "combiner": "mean"}
FEW_STEPS = {"steps_to_live": 3, "every_steps": 2}

JOBS: dict[str, dict[str, Any]] = {
    "plain": {
        "data": {"sparse": ["a", "b", {"name": "tags", "column": "tags", "combiner": "max"}]},
        "tables": {
            "b": {"admission": {"min_count": 2}, "eviction": FEW_STEPS, "default_value": 0.1},
            "tags": {"value_dtype": "bfloat16", "dim": 4},
        },
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
    },
    "multi_hash": {
        "data": {"sparse": ["a", {"name": "b", "column": "b", "max_norm": 1}, TAGS]},
        "tables": {
            "a": {"composition": {"type": "multi_hash", "modulus": 5}},
            "b": {
                "admission": {"min_count": 2},
                "composition": {"type": "multi_hash", "modulus": 60, "operation": "concatenate"},
            },
            "tags": {"composition": {"type": "multi_hash", "modulus": 6, "operation": "multiply"}},
        },
        "model": {"type": "deepfm", "mlp": [8]},
    },
    "dynamic": {
        "data": {"sparse": ["a", "b", TAGS]},
        "tables": {
            "a": {"composition": {"type": "dynamic_dimension", "min_counts": [10]}},
            "b": {
                "optimizer": ADAM,
                "admission": {"min_count": 2},
                "eviction": FEW_STEPS,
                "composition": {"type": "dynamic_dimension", "min_counts": [3, 20, 50]},
            },
            "tags": {
                "admission": {"type": "bloom", "min_count": 2, "max_elements": 100},
                "composition": {"type": "dynamic_dimension", "min_counts": [50]},
            },
        },
        "model": {"type": "wide_deep", "mlp": [8]},
    },
    "adaptive": {
        "data": {"sparse": [{"name": "a", "column": "a", "max_norm": 1}, "b", TAGS]},
        "tables": {
            "a": {
                "admission": {"type": "probabilistic", "probability": 0.05},
                "composition": {"type": "adaptive", "static_rows": 8192},
            },
            "b": {
                "admission": {"min_count": 3},
                "eviction": FEW_STEPS,
                "composition": {"type": "adaptive", "static_rows": 4096},
            },
            "tags": {
                "admission": {"type": "bloom", "min_count": 2, "max_elements": 100},
                "composition": {"type": "adaptive", "static_rows": 4096},
            },
        },
        "model": {"type": "deepfm", "mlp": [8]},
    },
}


class SavedModel:
    """A model that is trained by made-up gradients, and of which cuts are written.

    Args:
        name: one of JOBS.
        folder: its run directory.
    """

    def __init__(self, name: str, folder: Path, **sections: Any) -> None:
        job = {**JOBS[name], **sections}
        data = {"train": "none.parquet", "dense": ["d1", "d2"], "batch_size": 1, **job["data"]}
        config = JobConfig.from_dict(
            {**job, "seed": 3, "data": data, "embedding": {"dim": 4}, "cluster": {"servers": 1},
             "training": {"mode": "async"}, "run": {"dir": str(folder)}}
        )  # fmt: skip
        self.run = folder
        self.features, self.model = feature_spec(config), model_spec(config)
        self.spec = store_spec(config, self.model)
        self.shard = Shard(self.spec, 0)
        dense = initial_parameters(build_model(self.model), 3)
        self.shard.initialize(_EPOCH, dense=dense)
        self._prepare = Preparer(
            tables=[table.name for table in self.spec.tables],
            sparse=self.features.sparse,
            lookups=self.model.lookups,
            deduplicator=Deduplicator([t.dim for t in self.spec.tables], Routing.even(1)),
        )
        self._rng = np.random.default_rng(5)
        self._cuts = 0
        self._parent: Parent | None = None
        # What manifests say of the job's recoveries; the shard knows nothing of them.
        self.epoch = _EPOCH
        self.histories: list[tuple[int, int]] = []

    def train(self, steps: int = 1, *, evict: bool = False) -> None:
        """Train some batches; with `evict` what was not seen lately goes from tables that evict."""
        for _ in range(steps):
            samples = some_samples(self._rng, 100)
            features = self.features
            table = pa.table({**samples, "label": [0.0] * 100})
            batch = columns_from_table(table, features, where=("none", None)).batch(0, 100)
            prepared = self._prepare(batch)
            self._apply(prepared)
            self.shard.step += 1
            dense = self.shard.dense.rows[:, : self.spec.dense_size]
            dense += self._rng.normal(scale=0.02, size=dense.shape).astype(np.float32)
        if evict:
            evicting = [table for table in self.shard.tables if table.spec.eviction is not None]
            gone = [table.evict(min_version=self.shard.step - 2).size for table in evicting]
            assert any(gone) or not evicting

    def _apply(self, prepared: Any) -> None:
        unique, step = prepared.unique, self.shard.step
        admitted = np.empty(unique.keys.size, np.uint8)
        parts, start = [], 0
        for table, size in zip(self.shard.tables, unique.sizes[0].tolist(), strict=True):
            part = slice(start, start + size)
            values = np.empty((size, table.spec.dim), np.float32)
            table.pull(unique.keys[part], unique.counts[part], values, admitted[part], step=step)
            parts.append(part)
            start += size
        _, trained = choose_rows(prepared, admitted)
        for table, part in zip(self.shard.tables, parts, strict=True):
            optimizer = table.spec.optimizer
            shape = (part.stop - part.start, table.spec.dim)
            table.apply(
                unique.keys[part],
                unique.counts[part].astype(np.int64),
                self._rng.normal(size=shape).astype(np.float32),
                trained[part],
                step=step,
                scale=1.0,
                scalars=step_scalars(optimizer, learning_rate=optimizer.learning_rate, step=step),
            )

    def cut(self, *, full: bool = False, taken: float | None = None) -> Path:
        """Write what has changed since the last cut; the first one is full.

        Args:
            taken: what the manifest says of when that was.
        """
        changed_only = self._parent is not None and not full
        self._cuts += 1
        step = self.shard.step
        self.shard.handle(Freeze(4, _EPOCH, self._cuts, step, changed_only), "test")
        path = self.run / "checkpoints" / f"{'delta' if changed_only else 'full'}-{step:012d}"
        writer = CutWriter(
            path, self.spec, 0, locked=contextlib.nullcontext, changed_only=changed_only
        )
        frozen = self.shard.frozen
        assert frozen is not None
        files = writer.write(frozen.tables, frozen.dense)
        self.shard.thaw()
        keys = {each.name: "integer" for each in self.features.sparse}
        manifest = Manifest(
            kind="delta" if changed_only else "full",
            step=step,
            recovery_epoch=self.epoch,
            store=self.spec.to_json(),
            model={
                "spec": asdict(self.model),
                "features": asdict(self.features),
                "contract": asdict(DataContract(keys=keys)),
            },
            job={} if taken is None else {"taken": taken},
            files=tuple(files),
            parent=self._parent if changed_only else None,
            training={"histories": self.histories} if self.histories else {},
            sorted=False,
        )
        self._parent = Parent(path.name, write_manifest(path, manifest))
        return path


def some_samples(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    """Return columns: two numbers with nulls, few keys, many with nulls, lists of few."""
    dense = rng.exponential(2.0, (2, n)).astype(np.float32)
    tags = [rng.integers(0, 30, size).tolist() for size in rng.integers(0, 4, n)]
    return {
        "d1": pa.array(dense[0], mask=rng.random(n) < 0.1),
        "d2": pa.array(dense[1]),
        "a": pa.array(rng.integers(-3, 20, n)),
        "b": pa.array(rng.zipf(1.3, n) % 5000, pa.int64(), mask=rng.random(n) < 0.05),
        "tags": pa.array(tags, pa.list_(pa.int64())),
    }
