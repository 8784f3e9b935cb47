"""The end of a simulated job as a checkpoint that was never written: another one starts from it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from embedding import CounterEntries, TableEntries, TableSpec, buckets_of
from embedding.kernels.mixing import NUM_BUCKETS
from ps.checkpoint.manifest import Manifest
from ps.checkpoint.read import CheckpointReader
from ps.messages.records import Record
from ps.shard.shard import Shard
from runtime.strict_json import json_text
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.start import Start, start_from, time_to_json


class SavedJob(CheckpointReader):
    """A checkpoint of a job on one shard, in memory.

    Attributes:
        start: where steps and clock of a job begin that goes on from here.
        records: of the job.
    """

    def __init__(self, shard: Shard, coordinator: Coordinator, records: Sequence[Record]) -> None:
        assert shard.spec.num_shards == 1, "its tables are whole"
        spec = coordinator.spec
        self.directory = Path("in-memory")
        self.store = shard.spec
        time = time_to_json(
            spec.start, coordinator.clock.state(), step=shard.step, global_batch=spec.global_batch
        )
        self.manifest = Manifest(
            kind="full",
            step=shard.step,
            recovery_epoch=spec.recovery_epoch,
            store=shard.spec.to_json(),
            model={},
            job={},
            files=(),
            time=json.loads(json_text(time)),
        )
        self.records = tuple(records)
        self._rows = {table.spec.name: table.export() for table in shard.tables}
        self._counters = {table.spec.name: table.export_counters() for table in shard.tables}
        self._dense = shard.dense.rows.copy()
        self.start: Start = start_from(self, global_batch=spec.global_batch, init_clock="continue")

    def entries(
        self,
        table: TableSpec,
        buckets: tuple[int, int] = (0, NUM_BUCKETS),
        *,
        rows: bool = True,
        counters: bool = True,
        without: str | None = None,
    ) -> Iterator[TableEntries | CounterEntries]:
        if rows:
            entries = self._rows[table.name]
            yield entries.take(_in_buckets(entries.keys, buckets))
        if counters:
            counted = self._counters[table.name]
            places = _in_buckets(counted.keys, buckets)
            yield CounterEntries(
                counted.keys[places], counted.frequency[places], counted.version[places]
            )

    def num_rows(self, table: TableSpec, buckets: tuple[int, int] = (0, NUM_BUCKETS)) -> int:
        return len(_in_buckets(self._rows[table.name].keys, buckets))

    def dense_rows(self, blocks: tuple[int, int] | None = None) -> np.ndarray:
        return self._dense[slice(*(blocks or (0, len(self._dense))))].copy()


def _in_buckets(keys: np.ndarray, buckets: tuple[int, int]) -> np.ndarray:
    numbers = buckets_of(keys)
    return np.flatnonzero((numbers >= buckets[0]) & (numbers < buckets[1]))
