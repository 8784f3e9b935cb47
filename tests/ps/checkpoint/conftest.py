"""A job of shards of which cuts are written, in full or as deltas."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.optimizers import AdamAsync, Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.manifest import Parent, write_manifest
from ps.messages.records import Freeze, TableEviction

TABLES = (
    TableSpec(name="counted", dim=3, admission=CounterAdmission(min_count=3), value_dtype="int8"),
    TableSpec(name="bloom", dim=2, admission=BloomAdmission(min_count=3, max_elements=2000)),
    TableSpec(name="adam", dim=17, optimizer=AdamAsync(), value_dtype="bfloat16"),
    TableSpec(name="plain", dim=1, optimizer=Sgd(), track_usage=False),
)
DENSE = 2500


class CutJob:
    """A job of shards that is trained a step at a time, and of which cuts are written."""

    dense_size = DENSE

    def __init__(
        self,
        small_job: Any,
        folder: Path,
        num_shards: int = 2,
        tables: Sequence[TableSpec] = TABLES,
        keys: int = 400,
        batch: int = 60,
        **options: Any,
    ) -> None:
        self.tables, self._keys, self._batch = tables, keys, batch
        self.job = small_job(tables, num_shards=num_shards, dense_size=DENSE, **options)
        self.folder = folder
        self.parent: Parent | None = None
        self.batches = self.cuts = 0
        self._rng = np.random.default_rng(4)

    def train(self, steps: int = 1, *, evict: bool = False) -> None:
        for _ in range(steps):
            batch = self.batches
            self.batches += 1
            keys = [self._rng.zipf(1.4, self._batch) % self._keys - 200 for _ in self.tables]
            # Of rows alone: keys that go by what was counted of them need usage.
            tracked = [t for t, table in enumerate(self.tables) if table.track_usage]
            old = tuple(TableEviction(t, min_version=max(0, batch - 3)) for t in tracked)
            self.job.train(batch, *keys, **({"evict": old} if evict else {}))

    def freeze(self, *, changed_only: bool) -> int:
        self.cuts += 1
        step = self.job.shards[0].step
        for s in range(len(self.job.shards)):
            self.job.send(s, Freeze(4, self.job.epoch, self.cuts, step, changed_only))
        return step

    def cut(
        self,
        *,
        changed_only: bool,
        meanwhile: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Path:
        """Freeze all shards and write them; `meanwhile` runs before each piece is read."""
        step = self.freeze(changed_only=changed_only)

        @contextlib.contextmanager
        def locked() -> Iterator[None]:
            meanwhile()
            yield

        kind = "delta" if changed_only else "full"
        path = self.folder / f"{kind}-{step:012d}"
        files = []
        for shard in self.job.shards:
            writer = CutWriter(
                path, self.job.spec, shard.index, locked=locked, changed_only=changed_only,
                **options,
            )  # fmt: skip
            files += writer.write(shard.frozen.tables, shard.frozen.dense)
            shard.thaw()
        manifest = self.job.manifest(
            kind=kind,
            step=step,
            files=tuple(files),
            parent=self.parent if changed_only else None,
            training={"clock": step},
            sorted=False,
        )
        self.parent = Parent(path.name, write_manifest(path, manifest))
        return path


@pytest.fixture
def cut_job(small_job: Any, tmp_path: Path) -> CutJob:
    return CutJob(small_job, tmp_path)


@pytest.fixture
def make_cut_job(small_job: Any, tmp_path: Path) -> Callable[..., CutJob]:
    """Makes a job of other tables."""

    def make(tables: Sequence[TableSpec], **options: Any) -> CutJob:
        return CutJob(small_job, tmp_path, tables=tables, **options)

    return make
