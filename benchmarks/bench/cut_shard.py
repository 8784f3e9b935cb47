"""A shard in this process of which cuts are written and restored, and a thread that trains it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedding import TableEntries, TableSpec, rule_for
from embedding.optimizers.rule import step_scalars
from embedding.spec.optimizers import Adagrad
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.manifest import Manifest, Parent, write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.messages.records import Freeze
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.shard import Shard
from ps.spec import StoreSpec

BATCH = 12_000  # distinct keys of a batch of 2048 samples
_ROWS_AT_ONCE = 1 << 20
_DENSE = 500_000


def store_of(dim: int, *, track_usage: bool) -> StoreSpec:
    return StoreSpec(
        tables=(TableSpec(name="t", dim=dim, track_usage=track_usage),),
        dense_size=_DENSE,
        dense_optimizer=Adagrad(),
        num_shards=1,
    )


@dataclass(slots=True)
class Pace:
    """How long pulls and steps took, in seconds, and how long all of them together."""

    pulls: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Steps a second, with their pulls."""
        return len(self.steps) / self.seconds


class CutShard:
    """One shard with rows of keys 0 to n - 1, behind the lock that servers have.

    Args:
        store: of one table.
        rows: how many.
    """

    def __init__(self, store: StoreSpec, rows: int) -> None:
        self.store, self.rows = store, rows
        self.lock = ReadWriteLock()
        self.shard = Shard(store, 0)
        self.shard.initialize(1, dense=np.zeros(store.dense_size, np.float32))
        self._rng = np.random.default_rng(0)
        self._number = 0
        (spec,) = store.tables
        width = rule_for(spec.optimizer, sparse=True).row_width(spec.dim) - spec.dim
        for start in range(0, rows, _ROWS_AT_ONCE):
            keys = np.arange(start, min(start + _ROWS_AT_ONCE, rows))
            vectors = self._rng.normal(size=(keys.size, spec.dim)).astype(np.float32)
            slots = np.ones((keys.size, width), np.float32)
            self.table.import_rows(TableEntries(keys, keys, keys, vectors, slots))

    @property
    def table(self):  # type: ignore[no-untyped-def]
        return self.shard.tables[0]

    def change(self, keys: npt.NDArray[np.int64]) -> None:
        """Update rows, as a step does."""
        (spec,) = self.store.tables
        self.table.apply(
            keys,
            np.ones(keys.size, np.int64),
            np.full((keys.size, spec.dim), 1e-3, np.float32),
            None,
            step=1,
            scale=1.0,
            scalars=step_scalars(spec.optimizer, learning_rate=0.01, step=1),
        )

    def train(self, until: Callable[[], bool]) -> Pace:
        """Pull and update rows batch by batch."""
        (spec,) = self.store.tables
        values = np.empty((BATCH, spec.dim), np.float32)
        admitted = np.empty(BATCH, np.uint8)
        pace, began = Pace(), time.perf_counter()
        while not until():
            keys = np.unique(self._rng.integers(0, self.rows, BATCH))
            n, start = keys.size, time.perf_counter()
            with self.lock.shared():
                self.table.pull(keys, None, values[:n], admitted[:n])
            pulled = time.perf_counter()
            with self.lock.exclusive():
                self.change(keys)
            pace.pulls.append(pulled - start)
            pace.steps.append(time.perf_counter() - pulled)
        pace.seconds = time.perf_counter() - began
        return pace

    def freeze(self, *, changed_only: bool) -> float:
        """Freeze what the shard holds; return how long it was held for that, in seconds."""
        self._number += 1
        began = time.perf_counter()
        with self.lock.exclusive():
            self.shard.handle(Freeze(1, 1, self._number, self.shard.step, changed_only), "bench")
        return time.perf_counter() - began

    def write(self, path: Path, *, changed_only: bool) -> list[FileEntry]:
        frozen = self.shard.frozen
        assert frozen is not None, "it was frozen before"
        writer = CutWriter(path, self.store, 0, locked=self.lock.shared, changed_only=changed_only)
        files = writer.write(frozen.tables, frozen.dense)
        self.shard.thaw()
        return files

    def finish(self, path: Path, files: list[FileEntry], parent: Parent | None = None) -> Parent:
        """Write the manifest; return what a delta on top of it names."""
        manifest = Manifest(
            kind="full" if parent is None else "delta",
            step=self.shard.step,
            recovery_epoch=1,
            store=self.store.to_json(),
            model={},
            job={},
            files=tuple(files),
            parent=parent,
            sorted=False,
        )
        return Parent(path.name, write_manifest(path, manifest))

    def train_while(self, work: Callable[[], object]) -> tuple[Pace, float]:
        """Train as long as some work goes on in another thread; return its seconds, too."""
        took: list[float] = []

        def run() -> None:
            began = time.perf_counter()
            work()
            took.append(time.perf_counter() - began)

        thread = threading.Thread(target=run)
        thread.start()
        pace = self.train(lambda: not thread.is_alive())
        thread.join()
        if not took:
            raise RuntimeError("what ran beside training failed, see above")
        return pace, took[0]


def restore(store: StoreSpec, path: Path) -> Shard:
    """Return a shard of a checkpoint."""
    shard = Shard(store, 0)
    start_shard_from(shard, CheckpointReader(path), recovery_epoch=2, goes_on=True)
    return shard
