"""Make the serving form of a checkpoint: of all of it, or of what has changed since another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import BloomBlocks, CounterEntries, TableEntries, TableSpec
from embedding.arrow import COUNTER_SCHEMA, counters_from_arrow, from_arrow, row_schema
from embedding.kernels.arguments import read_only
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import BloomAdmission
from embedding.table.bloom import BloomSize
from embedding.table.index import WORDS
from embedding.table.row_arrays import NUM_STATE, RowArrays, add_batch
from embedding.table.transfer import write_rows
from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.key_set import KeySet
from ps.checkpoint.manifest import MANIFEST as CHECKPOINT_MANIFEST
from ps.checkpoint.read import ALL_BUCKETS, CheckpointReader
from ps.checkpoint.write import REMOVED_SCHEMA, bloom_schema
from runtime.places import time_at
from serving.errors import ServingError
from serving.form.files import FormManifest, FormWriter, new_form, write_manifest
from serving.form.opening import Form, OverlayArrays, form_name
from serving.rows.layers import REMOVED
from serving.rows.quantized import INT8, RowsAs, kind_for, width_of, write_int8
from serving.rows.table import counting_tables, keeps_counters, thresholds
from worker.inference import saved_model

Int64Array = npt.NDArray[np.int64]

_KEYS_A_LINE = 3.4  # of five places


@dataclass(frozen=True, slots=True)
class BaseProgress:
    """How far a base is that is being made.

    Args:
        checkpoint: the folder's name of the checkpoint that it is made from.
        rows: that are written.
        of: that the checkpoint's files list; one that comes again in a delta is listed again.
    """

    checkpoint: str
    rows: int
    of: int


WhenMaking = Callable[[BaseProgress], None]


def make_base(
    reader: CheckpointReader,
    folder: Path,
    rows: RowsAs = "float32",
    when_making: WhenMaking | None = None,
) -> Path:
    """Write all that a model reads of a checkpoint; return where, below `folder`.

    Args:
        rows: how vectors are kept.
        when_making: called as rows are written.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ServingError: the place can't be written.
    """
    path = folder / form_name("base", reader.manifest.step, reader.seal, rows)
    if path.exists():
        return path
    specs = served_tables(reader)
    counting, filters = counting_tables(specs), thresholds(specs)
    listed = sum(_listed_rows(reader, spec) for spec in specs)
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if when_making is not None:
            when_making(BaseProgress(reader.directory.name, done, listed))

    wrote(0)
    with new_form(path) as (writer, partial):
        for spec in specs:
            _write_base_table(writer, reader, spec, counting, kind_for(spec, rows), wrote)
            _write_base_filters(writer, reader, spec, filters.get(spec.name, ()))
        writer.write("dense", reader.dense_vector())
        write_manifest(partial, _manifest("base", reader, specs, writer, None, rows))
    return path


def make_overlay(reader: CheckpointReader, before: Form, folder: Path) -> Path:
    """Write what a checkpoint has different from the base of another version of its chain.

    Only the deltas between the two are read, and what the other version's overlay has.

    Args:
        before: a version that the checkpoint lies on.

    Raises:
        CheckpointError: a delta is damaged.
        ServingError: the checkpoint doesn't lie on that version.
    """
    seals = [files.seal for files in reader.chain]
    if before.manifest.seal not in seals:
        raise ServingError(
            f"{reader.directory} does not lie on {before.manifest.checkpoint}, which is served"
        )
    deltas = reader.chain[: seals.index(before.manifest.seal)]
    rows = before.manifest.rows
    path = folder / form_name("overlay", reader.manifest.step, reader.seal, rows)
    if path.exists():
        return path
    specs = served_tables(reader)
    counting, filters = counting_tables(specs), thresholds(specs)
    # A job may have one every second, of hundreds of files: to wait for the disk would take longer
    # than all else.
    with new_form(path, durable=False) as (writer, partial):
        for spec in specs:
            layer = _Changes(spec, kind_for(spec, rows), before.overlay_of(spec.name))
            layer.read(deltas)
            layer.write(writer, with_frequency=spec.name in counting)
            _write_changed_filters(writer, before, deltas, spec, filters.get(spec.name, ()))
        writer.write("dense", reader.dense_vector())
        manifest = _manifest("overlay", reader, specs, writer, before.base_name, rows)
        write_manifest(partial, manifest)
    return path


def served_tables(reader: CheckpointReader) -> list[TableSpec]:
    """Return the tables that the model's lookups name, and those that these read."""
    lookups = saved_model(reader).spec.lookups
    names = {part.table for lookup in lookups for part in lookup.physical}
    specs = {spec.name: spec for spec in reader.store.tables}
    missing = sorted(names - set(specs))
    if missing:
        raise ServingError(f"{reader.directory} has no table {missing[0]!r}, which its model reads")
    names |= {spec.base for name in names if (spec := specs[name]).base is not None}
    return [spec for spec in reader.store.tables if spec.name in names]


def _manifest(
    kind: str,
    reader: CheckpointReader,
    specs: Sequence[TableSpec],
    writer: FormWriter,
    base: str | None,
    rows: RowsAs,
) -> FormManifest:
    return FormManifest(
        kind="base" if kind == "base" else "overlay",
        checkpoint=reader.directory.name,
        seal=reader.seal,
        step=reader.manifest.step,
        taken=_taken(reader),
        recovery_epoch=reader.manifest.recovery_epoch,
        histories=_histories(reader),
        base=base,
        store=reader.manifest.store,
        model=reader.manifest.model,
        rows=rows,
        files=writer.files,
    )


def _taken(reader: CheckpointReader) -> float:
    """Return when the job was at the step; of what says nothing of it, when it was written."""
    taken = reader.manifest.job.get("taken")
    if isinstance(taken, int | float) and not isinstance(taken, bool):
        return float(taken)
    try:
        return time_at(reader.directory / CHECKPOINT_MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{reader.directory} can't be read: {error}") from error


def _histories(reader: CheckpointReader) -> tuple[tuple[int, int], ...]:
    """Return the recovery epochs that a checkpoint says that it comes from; none where it can't."""
    found = reader.manifest.training.get("histories", [])
    try:
        return tuple((int(epoch), int(began)) for epoch, began in found)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{reader.directory} has wrong histories: {error}") from error


class _Index:
    """Numbers for keys, in the order in which they are added."""

    def __init__(self, entries: Int64Array, capacity: int) -> None:
        self._arrays = RowArrays(
            entries=entries,
            metadata=np.empty((0, 2), np.uint32),
            values=np.empty((0, 0), np.float32),
            keys=np.empty(capacity, np.int64),
            flags=np.zeros(capacity, np.uint8),
            state=np.zeros(NUM_STATE, np.int64),
        )

    def add(self, keys: Int64Array) -> Int64Array:
        numbers = np.empty(keys.size, np.int64)
        add_batch(self._arrays, read_only(keys), numbers)
        return numbers

    def end(self) -> None:
        """Leave what has passed lines out, as the form has it."""
        self._arrays.entries.view(np.uint32)[:, -1] = 0


def _lines_for(num_keys: int) -> int:
    return 1 << max(4, int(np.ceil(num_keys / _KEYS_A_LINE)).bit_length())


def _write_vectors(
    values: npt.NDArray[np.float32],
    numbers: Int64Array,
    vectors: npt.NDArray[np.float32],
    kind: int,
) -> None:
    if kind == INT8:
        write_int8(values, numbers, vectors)
        return
    none = np.empty(0, np.int64)
    arrays = RowArrays(
        np.empty((0, WORDS), np.int64),
        np.empty((0, 2), np.uint32),
        values,
        none,
        np.empty(0, np.uint8),
        np.zeros(NUM_STATE, np.int64),
    )
    write_rows(
        arrays,
        numbers,
        kind,
        False,
        read_only(none),
        read_only(none),
        read_only(vectors),
        read_only(np.empty((numbers.size, 0), np.float32)),
    )


def _write_base_table(
    writer: FormWriter,
    reader: CheckpointReader,
    spec: TableSpec,
    counting: dict[str, set[int]],
    kind: int,
    wrote: Callable[[int], None],
) -> None:
    name = f"tables/{spec.name}"
    keeps, least = keeps_counters(spec, counting)
    most_rows = _listed_rows(reader, spec)
    most = most_rows + (_listed(reader, f"{name}/counters-") if keeps else 0)
    keys_rowless: list[Int64Array] = []
    counts: list[Int64Array] = []
    frequency: list[Int64Array] = []
    rows = 0
    with (
        writer.mapped(f"{name}/index", "int64", (_lines_for(most), WORDS)) as entries,
        writer.mapped(f"{name}/values", "float32", (most_rows, width_of(spec.dim, kind))) as values,
    ):
        index = _Index(entries.array, most)
        for found in reader.entries(spec, counters=keeps):
            if isinstance(found, CounterEntries):
                useful = found.frequency >= least
                keys_rowless.append(found.keys[useful])
                counts.append(found.frequency[useful])
                continue
            numbers = index.add(found.keys)
            _write_vectors(values.array, numbers, found.vectors, kind)
            rows += numbers.size
            wrote(numbers.size)
            if spec.name in counting:
                frequency.append(found.frequency)
        for keys in keys_rowless:
            index.add(keys)
        index.end()
        values.kept = rows
    writer.write(f"{name}/rowless", _joined(counts))
    writer.write(f"{name}/frequency", _joined(frequency))


def _listed_rows(reader: CheckpointReader, spec: TableSpec) -> int:
    """Return how many rows of a table the chain lists, those of its deltas again."""
    return sum(_listed(reader, f"tables/{spec.name}/{kind}-") for kind in ("rows", "placed"))


def _listed(reader: CheckpointReader, prefix: str) -> int:
    return sum(
        entry.rows
        for files in reader.chain
        for entry in files.manifest.files
        if entry.path.startswith(prefix)
    )


def _joined(parts: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _write_base_filters(
    writer: FormWriter, reader: CheckpointReader, spec: TableSpec, counts: Sequence[int]
) -> None:
    if not isinstance(spec.admission, BloomAdmission):
        return
    blocks = np.zeros((NUM_BUCKETS, BloomSize.of(spec.admission).counters), np.uint64)
    for found in reader.bloom_blocks(spec):
        blocks[found.buckets] = found.counters
    for count in counts:
        writer.write(filter_name(spec.name, count), (blocks >= count).astype(np.uint8))


def filter_name(table: str, count: int) -> str:
    return f"tables/{table}/reached-{count}"


def _write_changed_filters(
    writer: FormWriter,
    before: Form,
    deltas: Sequence[CheckpointFiles],
    spec: TableSpec,
    counts: Sequence[int],
) -> None:
    if not isinstance(spec.admission, BloomAdmission):
        return
    changed = list(_changed_blocks(deltas, spec.name, spec.admission))
    for count in counts:
        name = filter_name(spec.name, count)
        if not changed:
            writer.link(name, before.folder / name, before.manifest.files[name])
            continue
        reached = before.array(name).copy()
        for blocks in reversed(changed):
            reached[blocks.buckets] = blocks.counters >= count
        writer.write(name, reached)


def _changed_blocks(
    deltas: Sequence[CheckpointFiles], table: str, rule: BloomAdmission
) -> Iterator[BloomBlocks]:
    """Read the blocks that deltas name, the newest first."""
    for files in deltas:
        for batch in files.batches(f"tables/{table}/bloom-", bloom_schema(rule), ALL_BUCKETS):
            counters = batch.column(1)
            width = counters.type.list_size
            blocks = counters.flatten().to_numpy().reshape(-1, width)
            yield BloomBlocks(batch.column(0).to_numpy(), blocks)


@dataclass(slots=True)
class _Changes:
    """What an overlay says of one table."""

    spec: TableSpec
    kind: int
    before: OverlayArrays | None
    keys: list[Int64Array] = field(default_factory=list)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    frequency: list[Int64Array] = field(default_factory=list)
    rowless_keys: list[Int64Array] = field(default_factory=list)
    rowless: list[Int64Array] = field(default_factory=list)
    # Rows that the overlay before had and that nothing has changed since, as they were stored.
    kept: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))

    def read(self, deltas: Sequence[CheckpointFiles]) -> None:
        """Take what deltas say, the newest first, then what is left of the overlay before."""
        seen = KeySet()
        folder = f"tables/{self.spec.name}"
        for files in deltas:
            for kind, schema in (
                ("rows", row_schema(self.spec)),
                ("counters", COUNTER_SCHEMA),
                ("removed", REMOVED_SCHEMA),
            ):
                for batch in files.batches(f"{folder}/{kind}-", schema, ALL_BUCKETS):
                    keys = batch.column(0).to_numpy()
                    if len(seen):
                        batch = batch.filter(pa.array(~seen.has(keys)))
                    seen.add(keys)
                    if batch.num_rows:
                        self._take(kind, batch)
        if self.before is None:
            return
        known = self.before.keys
        still = ~seen.has(known) if len(seen) else np.ones(known.size, np.bool_)
        num_rows = len(self.before.layer.values)
        self.kept = np.flatnonzero(still[:num_rows])
        self.rowless_keys.append(known[num_rows:][still[num_rows:]])
        self.rowless.append(self.before.layer.rowless[still[num_rows:]])

    def _take(self, kind: str, batch: pa.RecordBatch) -> None:
        if kind == "rows":
            rows: TableEntries = from_arrow(batch, self.spec, allow_nonfinite=True)
            self.keys.append(rows.keys)
            self.vectors.append(rows.vectors)
            self.frequency.append(rows.frequency)
        elif kind == "counters":
            counters = counters_from_arrow(batch)
            self.rowless_keys.append(counters.keys)
            self.rowless.append(counters.frequency)
        else:
            keys = batch.column(0).to_numpy()
            self.rowless_keys.append(keys)
            self.rowless.append(np.full(keys.size, REMOVED))

    def write(self, writer: FormWriter, *, with_frequency: bool) -> None:
        name = f"tables/{self.spec.name}"
        kept_keys, kept_frequency = [], []
        if self.before is not None:
            kept_keys.append(self.before.keys[self.kept])
            if with_frequency:
                kept_frequency.append(self.before.layer.frequency[self.kept])
        new = sum(keys.size for keys in self.keys)
        values = np.empty((new + self.kept.size, width_of(self.spec.dim, self.kind)), np.float32)
        keys = _joined([*self.keys, *kept_keys, *self.rowless_keys])
        entries = np.zeros((_lines_for(keys.size), WORDS), np.int64)
        index = _Index(entries, keys.size)
        index.add(keys)
        index.end()
        start = 0
        for vectors in self.vectors:
            numbers = np.arange(start, start + len(vectors))
            _write_vectors(values, numbers, vectors, self.kind)
            start += len(vectors)
        if self.before is not None:
            values[new:] = self.before.layer.values[self.kept]
        writer.write(f"{name}/index", entries)
        writer.write(f"{name}/values", values)
        writer.write(f"{name}/keys", keys)
        writer.write(f"{name}/rowless", _joined(self.rowless))
        frequency = [*self.frequency, *kept_frequency] if with_frequency else []
        writer.write(f"{name}/frequency", _joined(frequency))
