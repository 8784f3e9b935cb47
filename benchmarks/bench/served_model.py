"""The model of jobs/dlrm.yaml with random rows, saved as checkpoints of a run: full and deltas."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from embedding import TableEntries
from embedding.optimizers.rule import step_scalars
from ps.checkpoint.chain import MAX_CHAIN
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.manifest import Manifest, Parent, write_manifest
from ps.messages.records import Freeze
from ps.shard.shard import Shard
from scheduler import JobConfig
from scheduler.job.specs import feature_spec, model_spec, store_spec
from worker.data.batch import Bags, Batch
from worker.models import build_model, initial_parameters

JOB = Path(__file__).resolve().parents[2] / "jobs" / "dlrm.yaml"
_EPOCH = 1


class SavedDlrm:
    """A shard with so many rows, of which cuts are written.

    Args:
        run: the run directory.
        rows: in all tables together.
    """

    def __init__(self, run: Path, rows: int) -> None:
        config = JobConfig.from_yaml(JOB, ["cluster.servers=1"])
        self.run = run
        self.model, self.features = model_spec(config), feature_spec(config)
        self.store = store_spec(config, self.model)
        self.shard = Shard(self.store, 0)
        self.dense = initial_parameters(build_model(self.model), 1)
        self.shard.initialize(_EPOCH, dense=self.dense)
        self.rows_each = rows // len(self.shard.tables)
        self.rng = np.random.default_rng(1)
        self._cuts = 0
        self._parent: Parent | None = None
        for table in self.shard.tables:
            ones = np.ones(self.rows_each, np.int64)
            vectors = self.rng.standard_normal((self.rows_each, table.spec.dim), np.float32)
            vectors *= np.float32(0.1)
            keys = np.arange(self.rows_each)
            table.import_rows(TableEntries(keys, ones, ones, vectors, np.ones_like(vectors)))

    @property
    def rows(self) -> int:
        return self.rows_each * len(self.shard.tables)

    def vectors(self) -> np.ndarray:
        """All vectors, float32[tables * rows of each, dim]: key k of table t at t * rows + k."""
        keys = np.arange(self.rows_each)
        out = np.empty((self.rows, self.store.tables[0].dim), np.float32)
        for number, table in enumerate(self.shard.tables):
            part = out[number * keys.size : (number + 1) * keys.size]
            table.pull(keys, None, part, np.empty(keys.size, np.uint8))
        return out

    def train(self, keys: int) -> None:
        """Change some rows of every table, as a step does."""
        changed = self.rng.choice(self.rows_each, min(keys, self.rows_each), replace=False)
        for table in self.shard.tables:
            optimizer = table.spec.optimizer
            step = self.shard.step
            table.apply(
                changed,
                np.ones(changed.size, np.int64),
                self.rng.standard_normal((changed.size, table.spec.dim), np.float32),
                np.ones(changed.size, np.uint8),
                step=step,
                scale=1.0,
                scalars=step_scalars(optimizer, learning_rate=0.01, step=step),
            )
        self.shard.step += 1

    def cut(self) -> Path:
        """Write what has changed since the last cut; the first is full, and one after many."""
        changed_only = self._cuts % MAX_CHAIN != 0
        self._cuts += 1
        step = self.shard.step
        self.shard.handle(Freeze(4, _EPOCH, self._cuts, step, changed_only), "benchmark")
        kind = "delta" if changed_only else "full"
        path = self.run / "checkpoints" / f"{kind}-{step:012d}"
        writer = CutWriter(
            path, self.store, 0, locked=contextlib.nullcontext, changed_only=changed_only
        )
        frozen = self.shard.frozen
        assert frozen is not None
        files = writer.write(frozen.tables, frozen.dense)
        self.shard.thaw()
        manifest = Manifest(
            kind="delta" if changed_only else "full",
            step=step,
            recovery_epoch=_EPOCH,
            store=self.store.to_json(),
            model={"spec": asdict(self.model), "features": asdict(self.features)},
            job={},
            files=tuple(files),
            parent=self._parent if changed_only else None,
            sorted=False,
        )
        self._parent = Parent(path.name, write_manifest(path, manifest))
        return path

    def batch(self, items: int, rng: np.random.Generator) -> Batch:
        """Return a request of random keys, each of which has a row."""
        dense = rng.exponential(size=(items, self.model.num_dense)).astype(np.float32)
        keys = [rng.integers(0, self.rows_each, items) for _ in self.features.sparse]
        bags = tuple(Bags(each, None, None) for each in keys)
        return Batch(np.empty(0, np.float32), np.log1p(dense), bags)


def columns_of(model: SavedDlrm, batch: Batch) -> dict[str, np.ndarray]:
    """Return a batch as the columns that a request has."""
    dense = {
        name: np.expm1(batch.dense[:, i]).astype(np.float32)
        for i, name in enumerate(model.features.dense)
    }
    sparse = {f.column: b.keys for f, b in zip(model.features.sparse, batch.sparse, strict=True)}
    return dense | sparse


def part_of(columns: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return some of the columns."""
    return {name: columns[name] for name in names}
