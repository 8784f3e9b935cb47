"""A shard in this process of which cuts are written and restored, and threads that train it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bench.keys import EXPONENT
from embedding import TableEntries, TableSpec, Tiers, rule_for
from embedding.optimizers.rule import step_scalars
from embedding.spec.optimizers import Adagrad, Optimizer
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.manifest import Manifest, Parent, write_manifest
from ps.checkpoint.pace import Pace
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.messages.records import Freeze
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.shard import Shard
from ps.spec import StoreSpec

BATCH = 12_000  # distinct keys of a batch of 2048 samples, about
_DRAWN = 2048 * 26
_LAYER, _LAYERS = 512, 5  # of a batch of 2048: as many multiplications as those of the DLRM
_ROWS_AT_ONCE = 1 << 20
_DENSE = 500_000


def store_of(dim: int, *, track_usage: bool, optimizer: Optimizer | None = None) -> StoreSpec:
    table = TableSpec(name="t", dim=dim, track_usage=track_usage, optimizer=optimizer or Adagrad())
    return StoreSpec(
        tables=(table,),
        dense_size=_DENSE,
        dense_optimizer=Adagrad(),
        num_shards=1,
    )


@dataclass(slots=True)
class Training:
    """How long pulls and steps took, in seconds, and how long all of them together.

    `own` is the CPU of batches by the threads that train, `ends` when each was through, from the
    first one's begin; `cpu` is of the whole process, so of what goes on beside it too; `writing`
    says how long of all this a cut was being written, from the begin.
    """

    pulls: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    began: float = 0.0
    writing: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Steps a second, with their pulls."""
        return len(self.steps) / self.seconds

    @property
    def cpu_of_step(self) -> float:
        """CPU seconds of the process for each step."""
        return self.cpu / len(self.steps)

    @property
    def cpu_of_others(self) -> float:
        """CPU seconds of threads that do not train, and of drawing keys."""
        return self.cpu - sum(self.own)

    def rate_before(self, seconds: float) -> float:
        """Steps a second until so many seconds were over."""
        return sum(end <= seconds for end in self.ends) / seconds

    def own_before(self, seconds: float) -> float:
        """CPU seconds of a step until then, of the threads that train."""
        own = [cpu for cpu, end in zip(self.own, self.ends, strict=True) if end <= seconds]
        own = own or self.own[:1]
        return sum(own) / len(own)


class CutShard:
    """One shard with rows of keys 0 to n - 1, behind the lock that servers have.

    Args:
        store: of one table.
        rows: how many.
        tiers: of the table.
    """

    def __init__(self, store: StoreSpec, rows: int, tiers: Tiers | None = None) -> None:
        self.store, self.rows = store, rows
        self.lock = ReadWriteLock()
        self._guard = threading.Lock()
        self.shard = Shard(store, 0, tiers=_of_table(tiers))
        self.shard.initialize(1, dense=np.zeros(store.dense_size, np.float32))
        self._rng = np.random.default_rng(0)
        self._number = 0
        self._sums = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -EXPONENT)
        self._ranked = self._rng.permutation(rows)
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

    def hammer(self, until: Callable[[], bool]) -> Training:
        """Pull and update rows batch by batch, any of all, and do nothing else."""
        training = Training()
        with _timed(training):
            while not until():
                keys = np.unique(self._rng.integers(0, self.rows, BATCH))
                self._step(keys, lambda: None, training)
        return training

    def train(self, seconds: float) -> Training:
        """Train as a job does that has every core: a batch is drawn, pulled, computed, applied.

        Keys are drawn from a Zipf distribution; what is computed is as much as the dense layers of
        the DLRM of the other benchmarks, and gives no gradients.
        """
        training, threads = Training(), []
        end = time.perf_counter() + seconds
        with threadpool_limits(1), _timed(training):
            for number in range(len(os.sched_getaffinity(0))):
                arguments = (np.random.default_rng(number), end, training)
                threads.append(threading.Thread(target=self._work, args=arguments))
                threads[-1].start()
            for thread in threads:
                thread.join()
        return training

    def _work(self, rng: np.random.Generator, end: float, training: Training) -> None:
        batch = rng.standard_normal((2048, _LAYER), np.float32)
        weights = rng.standard_normal((_LAYER, _LAYER), np.float32)
        result = np.empty_like(batch)

        def compute() -> None:
            for _ in range(_LAYERS):
                np.matmul(batch, weights, out=result)

        while time.perf_counter() < end:
            ranks = np.searchsorted(self._sums, rng.random(_DRAWN) * self._sums[-1])
            keys = np.unique(self._ranked[np.minimum(ranks, self.rows - 1)])
            self._step(keys, compute, training)

    def _step(
        self, keys: npt.NDArray[np.int64], compute: Callable[[], None], training: Training
    ) -> None:
        (spec,) = self.store.tables
        values = np.empty((keys.size, spec.dim), np.float32)
        admitted = np.empty(keys.size, np.uint8)
        start, cpu = time.perf_counter(), time.thread_time()
        with self.lock.shared():
            self.table.pull(keys, None, values, admitted)
        pulled = time.perf_counter()
        compute()
        computed = time.perf_counter()
        with self.lock.exclusive():
            self.change(keys)
        end = time.perf_counter()
        with self._guard:  # one's values lie at the same place of all lists
            training.pulls.append(pulled - start)
            training.steps.append(end - computed)
            training.own.append(time.thread_time() - cpu)
            training.ends.append(end - training.began)

    def freeze(self, *, changed_only: bool) -> float:
        """Freeze what the shard holds; return how long it was held for that, in seconds."""
        self._number += 1
        began = time.perf_counter()
        with self.lock.exclusive():
            self.shard.handle(Freeze(1, 1, self._number, self.shard.step, changed_only), "bench")
        return time.perf_counter() - began

    def write(self, path: Path, *, changed_only: bool, pace: Pace | None = None) -> list[FileEntry]:
        frozen = self.shard.frozen
        assert frozen is not None, "it was frozen before"
        writer = CutWriter(
            path, self.store, 0, locked=self.lock.shared, changed_only=changed_only, pace=pace
        )
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

    def hammer_while_writing(self, path: Path) -> tuple[Training, float]:
        """Hammer as long as a full cut is written as fast as it goes; return its seconds, too."""
        with ThreadPoolExecutor(1) as beside:
            began = time.perf_counter()
            writing = beside.submit(self.write, path, changed_only=False)
            training = self.hammer(writing.done)
            writing.result()
            return training, time.perf_counter() - began

    def train_while_writing(self, path: Path, seconds: float, spread: float) -> Training:
        """Train while a full cut is written, over some time, which is cut short at the end."""
        pace = Pace(spread)

        def write() -> float:
            began = time.perf_counter()
            self.write(path, changed_only=False, pace=pace)
            return time.perf_counter() - began

        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(write)
            training = self.train(seconds)
            pace.hurry()
            training.writing = min(writing.result(), training.seconds)
        return training


@contextmanager
def _timed(training: Training) -> Iterator[None]:
    cpu, training.began = time.process_time(), time.perf_counter()
    yield
    training.seconds = time.perf_counter() - training.began
    training.cpu = time.process_time() - cpu


def restore(store: StoreSpec, path: Path, tiers: Tiers | None = None) -> Shard:
    """Return a shard of a checkpoint."""
    shard = Shard(store, 0, tiers=_of_table(tiers))
    start_shard_from(shard, CheckpointReader(path), recovery_epoch=2, goes_on=True)
    return shard


def _of_table(tiers: Tiers | None) -> dict[str, Tiers]:
    return {} if tiers is None else {"t": tiers}
