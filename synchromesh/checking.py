"""Hold a job against its data without starting it: what would be refused, and what to expect."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedding.table.precision import stored_width
from embedding.table.rows import IN_MEMORY, ON_DISK, memory_of
from embedding.table.tiered_values import PLACE_BYTES
from scheduler.job.config import JobConfig
from scheduler.job.specs import arriving_features
from synchromesh.checking_dense import warnings_of_dense
from synchromesh.checking_labels import LabelCheck, check_labels
from worker.data.plan import Plan
from worker.data.reading import read_file
from worker.errors import DataError
from worker.spec import FeatureSpec

if TYPE_CHECKING:
    from scheduler.driver.resolved import JobSpecs

SAMPLE_ROWS = 1_000_000
BATCH_ROWS = 8192


@dataclass(slots=True)
class Column:
    """What was seen of one input column.

    Args:
        name: of the feature.
        part: `weight`, `label` of one of several tasks, `dense` or `sparse`.
        null_rate: share of the rows without a value; of lists: without a key; of a task's label:
            that do not count in it.
        keys: keys a row on average; None of a dense column.
        distinct: distinct keys in the rows that were read; None of a dense column.
        distinct_expected: of all rows, if new keys go on to come as they came; None as above.
        minimum, maximum, mean: of the values of a dense column, after its transform, and of the
            samples' weights.
    """

    name: str
    part: str
    null_rate: float
    keys: float | None = None
    distinct: int | None = None
    distinct_expected: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None


@dataclass(slots=True)
class TableEstimate:
    """What a table is expected to come to after one epoch, on all servers together."""

    name: str
    rows: int
    memory_bytes: int


@dataclass(slots=True)
class Check:
    """What a job comes to.

    Args:
        files, rows: of data.train.
        batches: of an epoch.
        steps: of the job, of training.global_batch samples each.
        rows_read: how many rows the figures are of.
        label_mean: None where no row could be read.
        columns, tables: one of each, in the order of the job file.
        server_memory_bytes: that the tables of one server are expected to take.
        refused: what training would refuse, the first of each file.
        warnings: of the data, and of dense parameters that are much for the servers.
        labels: of a job whose labels have a stream of their own.
    """

    files: int
    rows: int
    batches: int
    steps: int
    rows_read: int
    label_mean: float | None
    columns: list[Column]
    tables: list[TableEstimate]
    server_memory_bytes: int
    refused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    labels: LabelCheck | None = None


def check_job(config: JobConfig, *, rows: int = SAMPLE_ROWS) -> Check:
    """Resolve a job against its data and read rows of it, without starting anything.

    Args:
        config: with absolute paths.
        rows: how many rows are read at most, spread evenly over the files.

    Raises:
        ConfigError, DataError, StorageError, CheckpointError: what training would refuse before it
            begins.
    """
    from scheduler.driver.resolved import resolve  # and with it Ray, which is not started

    specs = resolve(config)
    features, labels = specs.data.features, None
    if config.data.label_stream is not None:
        features = arriving_features(config)
    seen = _Seen(features)
    refused = _read(specs.plan, features, rows, seen)
    if config.data.label_stream is not None and not refused:
        labels = check_labels(config, specs.plan, rows=rows)
    columns = seen.columns(specs.plan.rows_per_epoch)
    tables = _tables(specs, seen, columns)
    total = specs.plan.rows_per_epoch * specs.plan.epochs
    if config.training.max_samples is not None:
        total = min(total, config.training.max_samples)
    return Check(
        files=len(specs.plan.files),
        rows=specs.plan.rows_per_epoch,
        batches=specs.plan.batches_per_epoch,
        steps=math.ceil(total / config.global_batch),
        rows_read=seen.rows,
        label_mean=seen.label_mean,
        columns=columns,
        tables=tables,
        server_memory_bytes=math.ceil(
            sum(table.memory_bytes for table in tables) / config.cluster.servers
        ),
        refused=refused,
        warnings=[
            *seen.warnings(),
            *([] if labels is None else labels.warnings()),
            *warnings_of_dense(
                specs.store.dense_size,
                workers=config.cluster.workers,
                servers=config.cluster.servers,
                batches=config.group_size,
            ),
        ],
        labels=labels,
    )


def _read(plan: Plan, features: FeatureSpec, rows: int, seen: "_Seen") -> list[str]:
    """Read the first rows of each file; return what can't be read."""
    refused = []
    share = math.ceil(rows / len(plan.files))
    for file in plan.files:
        read = 0
        try:
            for table, batch in read_file(file, features, BATCH_ROWS):
                seen.add(table, batch)
                read += table.num_rows
                if read >= share:
                    break
        except DataError as error:
            refused.append(str(error))
    seen.merge()
    return refused


class _Seen:
    """Sums over the rows that were read."""

    def __init__(self, features: FeatureSpec) -> None:
        self._features = features
        self.rows = 0
        self.label_sum = 0.0
        self._nulls: dict[str, int] = defaultdict(int)
        self._keys = [0] * len(features.sparse)
        self._distinct: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(features.sparse)
        # Keys that are not among the distinct ones yet: all are sorted again at each doubling only.
        self._pending: list[list[npt.NDArray[np.int64]]] = [[] for _ in features.sparse]
        self._merge_at = BATCH_ROWS
        # (rows, distinct) at each doubling and at the end: how fast new keys come.
        self._growth: list[list[tuple[int, int]]] = [[] for _ in features.sparse]
        self._low = np.full(len(features.dense), np.inf)
        self._high = np.full(len(features.dense), -np.inf)
        self._sum = np.zeros(len(features.dense))
        self._weight = Column(features.weight or "", "weight", 0.0)
        self._weight_sum = 0.0
        # Of each of several tasks: samples that count, and positives among them.
        self._counted = np.zeros(len(features.tasks), np.int64)
        self._positive = np.zeros(len(features.tasks), np.int64)

    def add(self, table: Any, batch: Any) -> None:
        self.rows += table.num_rows
        if self._features.tasks:
            self._counted += np.count_nonzero(~np.isnan(batch.labels), axis=0)
            self._positive += np.count_nonzero(batch.labels == 1, axis=0)
        elif batch.labels is not None:
            self.label_sum += float(np.sum(batch.labels, dtype=np.float64))
        if batch.weights is not None and batch.weights.size:
            seen, weights = self._weight, batch.weights
            low, high = float(weights.min()), float(weights.max())
            seen.minimum = low if seen.minimum is None else min(seen.minimum, low)
            seen.maximum = high if seen.maximum is None else max(seen.maximum, high)
            self._weight_sum += float(np.sum(weights, dtype=np.float64))
            seen.mean = self._weight_sum / self.rows
        for name in self._features.dense:
            self._nulls[name] += table.column(name).null_count
        if self._features.dense and table.num_rows:
            self._low = np.minimum(self._low, batch.dense.min(axis=0))
            self._high = np.maximum(self._high, batch.dense.max(axis=0))
            self._sum += batch.dense.sum(axis=0, dtype=np.float64)
        for at, bags in enumerate(batch.sparse):
            self._keys[at] += len(bags.keys)
            self._pending[at].append(np.unique(bags.keys))
            empty = (
                table.num_rows - len(bags.keys)
                if bags.offsets is None
                else int(np.count_nonzero(np.diff(bags.offsets) == 0))
            )
            self._nulls[f"sparse {at}"] += empty
        if self.rows >= self._merge_at:
            self.merge()
            self._merge_at = 2 * self.rows

    def merge(self) -> None:
        """Make the distinct keys those of all rows so far."""
        for at, pending in enumerate(self._pending):
            self._distinct[at] = np.unique(np.concatenate([self._distinct[at], *pending]))
            self._growth[at].append((self.rows, len(self._distinct[at])))
            pending.clear()

    def distinct_of(self, feature: int) -> npt.NDArray[np.int64]:
        return self._distinct[feature]

    def columns(self, all_rows: int) -> list[Column]:
        rows = max(1, self.rows)
        found = [self._weight] if self._features.weight is not None else []
        for task, counted, positive in self._tasks():
            found.append(
                Column(
                    task,
                    "label",
                    1 - counted / rows,
                    minimum=0.0 if counted else None,
                    maximum=1.0 if counted else None,
                    mean=positive / counted if counted else None,
                )
            )
        found += [
            Column(
                name,
                "dense",
                self._nulls[name] / rows,
                minimum=float(self._low[at]) if self.rows else None,
                maximum=float(self._high[at]) if self.rows else None,
                mean=float(self._sum[at]) / rows if self.rows else None,
            )
            for at, name in enumerate(self._features.dense)
        ]
        for at, feature in enumerate(self._features.sparse):
            distinct = len(self._distinct[at])
            found.append(
                Column(
                    feature.name,
                    "sparse",
                    self._nulls[f"sparse {at}"] / rows,
                    keys=self._keys[at] / rows,
                    distinct=distinct,
                    distinct_expected=grown(self._growth[at], all_rows),
                )
            )
        return found

    def _tasks(self) -> Iterator[tuple[str, int, int]]:
        """Give name, samples that count, and positives of each of several tasks."""
        sums = zip(self._counted.tolist(), self._positive.tolist(), strict=True)
        for task, (counted, positive) in zip(self._features.tasks, sums, strict=True):
            yield task.name, counted, positive

    @property
    def label_mean(self) -> float | None:
        """The share of positives; None where rows have no label, or none was read."""
        has_label = self._features.label is not None
        return self.label_sum / self.rows if self.rows and has_label else None

    def warnings(self) -> list[str]:
        if not self.rows:
            return []
        found = []
        mean = self.label_mean
        if mean in (0.0, 1.0):
            found.append(f"every label of the {self.rows:,} rows that were read is {mean:.0f}")
        for task, counted, positive in self._tasks():
            if positive in (0, counted):
                what = f"is {positive // counted}" if counted else "is masked"
                found.append(f"every label of task {task} of the {self.rows:,} rows read {what}")
        if self._weight.maximum == 0.0:
            found.append(
                f"every weight of the {self.rows:,} rows that were read is 0: nothing is learnt"
            )
        return found


def grown(growth: list[tuple[int, int]], rows: int) -> int:
    """Estimate the distinct keys of `rows` rows from those of fewer.

    Keys of natural data grow as a power of the rows (Heaps' law): its exponent is taken between
    half of the rows that were read and all of them.

    Args:
        growth: (rows read, distinct keys in them), ascending.
    """
    read, distinct = growth[-1] if growth else (0, 0)
    if not distinct:
        return 0
    half = next(((n, d) for n, d in growth if n >= read / 2), growth[-1])
    if read >= rows or half[0] == read or half[1] == 0:
        return distinct if read >= rows else min(rows, math.ceil(distinct * rows / read))
    exponent = math.log(distinct / half[1]) / math.log(read / half[0])
    return math.ceil(distinct * (rows / read) ** min(1.0, max(0.0, exponent)))


def _tables(specs: "JobSpecs", seen: _Seen, columns: list[Column]) -> list[TableEstimate]:
    """Estimate each table of the store: features that share one share its rows."""
    expected = {column.name: column for column in columns if column.part == "sparse"}
    of_table: dict[str, list[int]] = defaultdict(list)
    for lookup in specs.model.lookups:
        for part in lookup.physical:
            if lookup.feature not in of_table[part.table]:
                of_table[part.table].append(lookup.feature)
    features = specs.data.features.sparse
    found = []
    for spec in specs.store.tables:
        rows = 0
        shared = of_table.get(spec.name, [])
        if shared:
            apart = sum(len(seen.distinct_of(at)) for at in shared)
            keys = [seen.distinct_of(at) for at in shared]
            together = len(np.unique(np.concatenate(keys)))
            most = sum(expected[features[at].name].distinct_expected or 0 for at in shared)
            rows = math.ceil(most * together / apart) if apart else 0
        memory = memory_of(
            rows,
            stored_width(spec),
            track_usage=spec.track_usage,
            density=ON_DISK if spec.name in specs.tiers else IN_MEMORY,
        )
        if spec.name in specs.tiers:
            values = 4 * stored_width(spec) * rows
            budget = specs.tiers[spec.name].memory_bytes * specs.config.cluster.servers
            memory += PLACE_BYTES * rows - max(values - budget, 0)
        found.append(TableEstimate(spec.name, rows, memory))
    return found
