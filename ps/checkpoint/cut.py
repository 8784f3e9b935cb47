"""Write a shard as it was at one step while it goes on: a full cut, or what changed of it.

One thread copies frozen tables piece by piece, each under a lock that is held for a moment: it does
nothing else, as others wait for that lock. Another one collects rows by groups of buckets, and
hashes them; a third one writes them. What they take of memory is bounded whatever the tables hold.
Files are put onto the disk while others are written. They spread their work over some time, so
that training loses little of a core at any moment.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import BloomBlocks, CounterEntries, TableEntries, TableSpec, rule_for
from embedding.arrow import COUNTER_SCHEMA, list_column, row_schema
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.spec.admission import BloomAdmission
from embedding.table.bloom import reserved_bytes
from embedding.table.placed_rows import PlacedRows
from embedding.table.tier_extents import HeldExtents
from ps.checkpoint.bucket_groups import BucketGroups, Group
from ps.checkpoint.file_parts import FileEntry, FilePart
from ps.checkpoint.pace import Pace
from ps.checkpoint.placed import can_refer, keep_extents, placed_schema
from ps.checkpoint.write import (
    REMOVED_SCHEMA,
    Compression,
    PartsWriter,
    bloom_batch,
    bloom_schema,
    file_suffix,
    parts_writer,
    write_blocks,
    write_parts_list,
)
from ps.spec import StoreSpec
from runtime.durable import Flushes
from runtime.places import Place, place_of

Int64Array = npt.NDArray[np.int64]
Locked = Callable[[], AbstractContextManager[None]]
Columns = TableEntries | CounterEntries | BloomBlocks | PlacedRows
Piece = TypeVar("Piece", TableEntries, CounterEntries, BloomBlocks, tuple[TableEntries, PlacedRows])

BUFFER_BYTES = 64 << 20
MOST_SAVED_BYTES = 64 << 20
"""Of copies of what was changed before it was read: beyond that nothing waits for its time."""
_PIECE_BYTES = 1 << 20  # that is copied at once, with the lock held
_BLOOM_PART_BYTES = 8 << 20
_REMOVED_AT_ONCE = 1 << 20
_PIECES_AHEAD = 2
_PLACED_BYTES = 96  # a row that is referred to takes as much CPU as so many bytes of copies


class FrozenTable(Protocol):
    """What `EmbeddingVariable.freeze` gives."""

    removed: Int64Array
    num_rows: int
    num_placed: int
    num_counters: int
    num_blocks: int
    held: HeldExtents | None

    @property
    def saved_bytes(self) -> int: ...

    def rows(self, max_rows: int) -> Iterator[TableEntries]: ...

    def rows_and_places(self, max_rows: int) -> Iterator[tuple[TableEntries, PlacedRows]]: ...

    def counters(self, max_rows: int) -> Iterator[CounterEntries]: ...

    def bloom(self, max_bytes: int) -> Iterator[BloomBlocks]: ...


class CutWriter:
    """Writes one shard's part of a cut below a directory.

    Args:
        directory: of the checkpoint that is being written.
        store: of the job.
        index: of the shard.
        locked: holds the shard against changes while a piece is copied.
        changed_only: whether it is a delta, which says what was removed.
        compression: of all columns of tables.
        pace: over which time the work is spread.
    """

    def __init__(
        self,
        directory: str | Place,
        store: StoreSpec,
        index: int,
        *,
        locked: Locked,
        changed_only: bool,
        compression: Compression = "none",
        pace: Pace | None = None,
    ) -> None:
        self._root = place_of(directory)
        self._store = store
        self._index = index
        self._buckets = store.routing.bucket_span(index)
        self._suffix = file_suffix(index, store.num_shards)
        self._locked = locked
        self._changed_only = changed_only
        self._compression: Compression = compression
        self._pace = Pace() if pace is None else pace
        self._tables: Sequence[FrozenTable] = ()
        self._parts: list[FilePart] = []
        self._entries: list[FileEntry] = []

    def write(
        self, tables: Iterable[FrozenTable], dense: npt.NDArray[np.float32]
    ) -> list[FileEntry]:
        """Return what the manifest says of the files, once all are on the disk.

        Args:
            tables: in the order of the store; the caller closes them, however this ends.
            dense: float32[blocks, width], parameters and slots.

        Raises:
            OSError: a file could not be written.
            RuntimeError: a table was frozen again meanwhile, or given up.
        """
        with (
            ThreadPoolExecutor(1, thread_name_prefix="cut-read") as self._reading,
            ThreadPoolExecutor(1, thread_name_prefix="cut-write") as writing,
            Flushes() as self._flushes,
        ):
            return writing.submit(self._write_all, tables, dense).result()

    def _write_all(
        self, tables: Iterable[FrozenTable], dense: npt.NDArray[np.float32]
    ) -> list[FileEntry]:
        self._tables = tables = list(tables)
        self._pace.begin(sum(map(self._num_bytes, self._store.tables, tables)))
        # Filters first: every key that is counted changes a block of one, and what is saved of them
        # is kept until all are read.
        for spec, table in zip(self._store.tables, tables, strict=True):
            self._write_filter(spec, table)
        for spec, table in zip(self._store.tables, tables, strict=True):
            self._write_table(spec, table)
        rule = rule_for(self._store.dense_optimizer, sparse=False)
        first = self._store.routing.block_range(self._index)[0]
        blocks = write_blocks(
            self._root, self._suffix, rule, dense, first, self._parts, self._flushes
        )
        self._entries.append(blocks)
        self._entries.append(write_parts_list(self._root, self._suffix, self._parts, self._flushes))
        return self._entries

    def _num_bytes(self, spec: TableSpec, table: FrozenTable) -> int:
        """Return the bytes of all pieces of a table, about."""
        block_bytes = 0
        if isinstance(spec.admission, BloomAdmission):
            block_bytes = reserved_bytes(spec.admission) // NUM_BUCKETS + 8
        placed = table.num_placed if can_refer(table.held, self._root) else 0
        return (
            (table.num_rows - placed) * _row_bytes(spec)
            + placed * _PLACED_BYTES
            + table.num_counters * 24
            + table.num_blocks * block_bytes
        )

    def _write_table(self, spec: TableSpec, table: FrozenTable) -> None:
        rule = rule_for(spec.optimizer, sparse=True)
        widths = [spec.dim, *(slot.width(spec.dim) for slot in rule.slots)]
        schema = row_schema(spec)
        at_once, usage = max(1, _PIECE_BYTES // _row_bytes(spec)), 2 * spec.track_usage
        with self._file(spec, "rows", schema) as writer:
            groups = self._groups(writer, schema, table.num_rows, widths)

            def add(rows: TableEntries) -> None:
                numbers = [rows.keys, rows.frequency, rows.version]
                groups.add(numbers[: 1 + usage], rows.vectors, rows.slots)

            held = None if self._changed_only else table.held
            if held is not None and can_refer(held, self._root):
                self._write_placed(spec, table.rows_and_places(at_once), held, add)
            else:
                for rows in self._pieces(table.rows(at_once)):
                    add(rows)
            groups.finish()
        if table.num_counters:
            with self._file(spec, "counters", COUNTER_SCHEMA) as writer:
                groups = self._groups(writer, COUNTER_SCHEMA, table.num_counters, [])
                for counters in self._pieces(table.counters(_PIECE_BYTES // 24)):
                    groups.add([counters.keys, counters.frequency, counters.version])
                groups.finish()
        if self._changed_only:
            with self._file(spec, "removed", REMOVED_SCHEMA) as writer:
                keys = table.removed[np.argsort(buckets_of(table.removed), kind="stable")]
                for start in range(0, keys.size, _REMOVED_AT_ONCE):
                    part = pa.array(keys[start : start + _REMOVED_AT_ONCE])
                    writer.write(pa.record_batch([part], schema=REMOVED_SCHEMA))

    def _write_placed(
        self,
        spec: TableSpec,
        pieces: Iterator[tuple[TableEntries, PlacedRows]],
        held: HeldExtents,
        add: Callable[[TableEntries], None],
    ) -> None:
        """Write where rows are in extents, which get another name; give the others to `add`."""
        assert isinstance(self._root, Path), "only files have more than one name"
        schema, used = placed_schema(spec), np.zeros(held.first_segments[-1], np.bool_)
        with self._file(spec, "placed", schema) as writer:
            groups = self._groups(writer, schema, held.num_records, [], (0, held.num_records))
            for rows, placed in self._pieces(pieces):
                if rows.keys.size:
                    add(rows)
                used[placed.records // held.per_segment] = True
                numbers = [placed.records, placed.keys, placed.frequency, placed.version]
                groups.add(numbers[: len(schema)])
            groups.finish()
        folder = Path("tables") / spec.name
        for entry, parts in keep_extents(held, self._root, folder, self._suffix, used):
            self._entries.append(entry)
            self._parts += parts

    def _write_filter(self, spec: TableSpec, table: FrozenTable) -> None:
        if isinstance(spec.admission, BloomAdmission):
            schema = bloom_schema(spec.admission)
            with self._file(spec, "bloom", schema) as writer:
                for blocks in _joined(self._pieces(table.bloom(_PIECE_BYTES))):
                    writer.write(bloom_batch(blocks, schema))

    @contextmanager
    def _file(self, spec: TableSpec, kind: str, schema: pa.Schema) -> Iterator[PartsWriter]:
        path = Path("tables") / spec.name / f"{kind}-{self._suffix}"
        with parts_writer(
            self._root,
            path,
            schema,
            self._parts,
            compression=self._compression,
            flushes=self._flushes,
        ) as writer:
            yield writer
        self._entries.append(writer.entry)

    def _groups(
        self,
        writer: PartsWriter,
        schema: pa.Schema,
        num_rows: int,
        widths: list[int],
        records: tuple[int, int] | None = None,
    ) -> BucketGroups:
        """Return buffers that are written where they are full.

        Args:
            records: [first, end) of all, where groups are of these and not of buckets.
        """

        def take(group: Group) -> None:
            columns = [pa.array(numbers) for numbers in group.numbers]
            columns += [list_column(floats) for floats in group.floats]
            writer.write(pa.record_batch(columns, schema=schema), group.buckets)

        return BucketGroups(
            self._buckets if records is None else records,
            num_rows,
            num_numbers=len(schema) - len(widths),
            widths=widths,
            max_bytes=BUFFER_BYTES,
            take=take,
            by_key=records is None,
        )

    def _pieces(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield pieces that the other thread copies, some of them ahead."""

        def next_one() -> Piece | None:
            with self._locked():
                return next(pieces, None)

        ahead = deque(self._reading.submit(next_one) for _ in range(_PIECES_AHEAD))
        while (piece := ahead.popleft().result()) is not None:
            ahead.append(self._reading.submit(next_one))
            yield piece
            saved = sum(table.saved_bytes for table in self._tables)
            self._pace.did(_nbytes(piece), urgent=saved > MOST_SAVED_BYTES)


def _row_bytes(spec: TableSpec) -> int:
    """Return the bytes of a row in `TableEntries`."""
    return 24 + 4 * rule_for(spec.optimizer, sparse=True).row_width(spec.dim)


def _nbytes(piece: Columns | tuple[Columns, ...]) -> int:
    if isinstance(piece, tuple):
        return sum(map(_nbytes, piece))
    if isinstance(piece, PlacedRows):
        return piece.keys.size * _PLACED_BYTES
    return sum(getattr(piece, name).nbytes for name in piece.__slots__)


def _joined(pieces: Iterator[BloomBlocks]) -> Iterator[BloomBlocks]:
    """Yield blocks in batches of some size: what changed meanwhile comes in many small pieces."""
    held: list[BloomBlocks] = []
    for blocks in pieces:
        held.append(blocks)
        if sum(piece.counters.nbytes for piece in held) >= _BLOOM_PART_BYTES:
            yield _sorted(held)
            held = []
    if held:
        yield _sorted(held)


def _sorted(pieces: list[BloomBlocks]) -> BloomBlocks:
    buckets = np.concatenate([piece.buckets for piece in pieces])
    order = np.argsort(buckets)
    counters = np.concatenate([piece.counters for piece in pieces])
    return BloomBlocks(buckets[order], counters[order])
