"""Read the batches of a plan from Parquet files, only the columns that are needed."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from worker.data.batch import Bags, Batch
from worker.data.columns import Columns, columns_from_table, concatenate
from worker.data.decoding import Decoder, Part
from worker.data.open_file import OpenFile, open_file
from worker.data.plan import FilePlan, Piece, ReadPlan
from worker.data.segments import Segments
from worker.errors import DataError, UnreadableError
from worker.spec import FeatureSpec

# What is read ahead at once: as many rows as a row group of a good size has, but not so many row
# groups or bytes of a file that a batch would wait for them.
AHEAD_ROWS = 1 << 16
_AHEAD_ROW_GROUPS = 256
_AHEAD_FILE_BYTES = 4 << 20


@dataclass(slots=True, eq=False)
class _Block:
    """Rows that were decoded at once, and of which parts of the plan they are.

    `unread` is how many of them were not read yet, `read` by which batch and from where the
    others were: a batch may be read again.
    """

    columns: Columns
    parts: list[Part]
    unread: int
    read: set[tuple[int, Part, int]] = field(default_factory=set)

    def count(self, batch_id: int, part: Part, start: int, stop: int) -> bool:
        """A batch read rows of a part; return whether all rows have been read."""
        if (batch_id, part, start) not in self.read:
            self.read.add((batch_id, part, start))
            self.unread -= stop - start
        return self.unread == 0


class Reader:
    """Reads batches by id, for one thread.

    Decoded rows are kept while they fit, so that batches that follow each other in a lane decode
    each row group once. Small row groups are decoded with those that come next. Of a large one the
    part is decoded that a batch needs; where rows are shuffled within it, all of it.

    Args:
        plan: what the batch ids mean.
        features: the columns to read.
        on_bad_file: `fail` raises at a file or row group that can't be read; `skip` leaves its
            rows out of their batches, of a large row group those from the damaged part on.
        cache_bytes: limit of the decoded rows that are kept, in bytes; what was decoded last is
            kept in any case.
        once: an epoch reads each batch once, as training does: rows that no later epoch takes are
            forgotten as soon as all that was decoded with them has been read. A batch that is read
            again all the same is decoded again.
    """

    def __init__(
        self,
        plan: ReadPlan,
        features: FeatureSpec,
        *,
        on_bad_file: Literal["fail", "skip"] = "fail",
        cache_bytes: int = 1 << 30,
        once: bool = False,
    ) -> None:
        self._plan = plan
        self._once = once
        self._features = features
        self._skip = on_bad_file == "skip"
        self._cache_bytes = cache_bytes
        self._decoder = Decoder(plan, features)
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._places: dict[Part, tuple[int, int]] = {}  # a block, and the first row in it
        self._next_block = 0
        self._cached_bytes = 0

    def read(self, batch_id: int) -> tuple[Batch, int]:
        """Return a batch, and how many of its planned samples were skipped.

        The batch has `plan.rows_of(batch_id)` samples less the skipped ones, perhaps none. Its
        arrays are views of what the reader keeps: they are not to be written to.

        Raises:
            DataError: a file changed since it was planned; a value is refused; with `on_bad_file`
                `fail`, a file or row group can't be read (`UnreadableError`).
            IndexError: the plan has no such batch.
        """
        epoch = self._plan.epoch_of(batch_id)
        slices: list[tuple[Columns, int, int]] = []
        skipped = 0
        for piece in self._plan.pieces(batch_id):
            for part, start, stop in self._cut(epoch, piece):
                try:
                    columns, first = self._find(part, epoch, piece.position)
                except UnreadableError:
                    if not self._skip:
                        raise
                    skipped += stop - start
                    continue
                if self._once and not self._plan.taken_again(epoch):
                    number, _ = self._places[part]
                    if self._blocks[number].count(batch_id, part, start, stop):
                        self._forget(number)
                begin = first + start
                if slices and slices[-1][0] is columns and slices[-1][2] == begin:
                    begin = slices.pop()[1]
                slices.append((columns, begin, first + stop))
        parts = [columns.batch(start, stop) for columns, start, stop in slices]
        return concatenate(parts) if parts else _empty_batch(self._features), skipped

    def forget_files(self, below: int) -> None:
        """No row of files with lower numbers is read any more: keep nothing of them."""
        self._decoder.forget_files(below)
        for number, block in list(self._blocks.items()):
            if all(part.file < below for part in block.parts):
                self._forget(number)

    def close(self) -> None:
        """Close the files and forget what was decoded; the reader may be used again."""
        self._decoder.close()
        self._blocks.clear()
        self._places.clear()
        self._cached_bytes = 0

    def _cut(self, epoch: int, piece: Piece) -> Iterator[tuple[Part, int, int]]:
        """Yield the parts that a piece's rows are in, and which of their rows they are."""
        epoch = epoch if self._plan.shuffle == "rows" else 0
        rows = self._decoder.part_rows(piece.file, piece.row_group)
        at = piece.start
        while at < piece.stop:
            number, first = divmod(at, rows)
            end = min(piece.stop, (number + 1) * rows)
            yield Part(epoch, piece.file, piece.row_group, number), first, first + end - at
            at = end

    def _find(self, part: Part, epoch: int, position: int) -> tuple[Columns, int]:
        """Return what holds the rows of a part, and the first of them, decoded if need be.

        Raises:
            DataError: why the part can't be used.
        """
        if part not in self._places and part[1:] not in self._decoder.errors:
            rows = self._plan.file(part.file).row_group_rows[part.row_group]
            if self._decoder.part_rows(part.file, part.row_group) < rows:
                room = self._cache_bytes // 2
                for each, columns in self._decoder.parts_up_to(part, room=room):
                    if each not in self._places:
                        self._keep(columns, [each])
            else:
                found = self._decoder.row_groups(self._ahead(part, epoch, position))
                if found is not None:
                    self._keep(*found)
        if part not in self._places:
            raise self._decoder.errors[part[1:]].with_traceback(None)
        block, first = self._places[part]
        self._blocks.move_to_end(block)
        return self._blocks[block].columns, first

    def _ahead(self, part: Part, epoch: int, position: int) -> list[Part]:
        """Return a row group, and those that come next where they are small."""
        chosen: list[Part] = []
        limit = _Limit()
        for file, row_group in self._plan.row_groups_from(epoch, position):
            each = Part(part.epoch, file, row_group)
            known = each in self._places or each[1:] in self._decoder.errors
            full = limit.reached_with(self._plan.file(file), row_group)
            if chosen and (known or full):
                break
            chosen.append(each)
        return chosen

    def _keep(self, columns: Columns, parts: list[Part]) -> None:
        """Keep decoded rows, and forget those used longest ago where there are too many."""
        first = 0
        for part in parts:
            self._places[part] = self._next_block, first
            first += self._plan.file(part.file).row_group_rows[part.row_group]
        self._blocks[self._next_block] = _Block(columns, parts, unread=columns.num_rows)
        self._next_block += 1
        self._cached_bytes += columns.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._blocks) > 1:
            self._forget(next(iter(self._blocks)))

    def _forget(self, number: int) -> None:
        block = self._blocks.pop(number)
        self._cached_bytes -= block.columns.nbytes
        for part in block.parts:
            del self._places[part]


class _Limit:
    """How many row groups are decoded at once."""

    def __init__(self) -> None:
        self._row_groups = self._rows = 0
        self._bytes = 0.0

    def reached_with(self, file: FilePlan, row_group: int) -> bool:
        """Add a row group; return whether they are too many with it."""
        rows = file.row_group_rows[row_group]
        self._row_groups += 1
        self._rows += rows
        self._bytes += file.size * rows / max(1, sum(file.row_group_rows))
        return (
            self._rows > AHEAD_ROWS
            or self._row_groups > _AHEAD_ROW_GROUPS
            or self._bytes > _AHEAD_FILE_BYTES
        )


def read_file(
    planned: FilePlan,
    features: FeatureSpec,
    batch_rows: int,
    *,
    keep: Sequence[str] = (),
) -> Iterator[tuple[pa.Table, Batch]]:
    """Read one file from its first row to its last, for prediction.

    Args:
        planned: the file, as a plan for these columns has it.
        features: what makes the batches; without a label for samples that have none.
        batch_rows: most samples in a batch; some have fewer.
        keep: further columns of the table that comes with each batch.

    Yields:
        The batch, and before it its rows as a table with the columns of `features` and `keep`.

    Raises:
        DataError: as `Reader.read`, and for a column that is missing or of an unusable type.
    """
    names = list(dict.fromkeys([*features.columns(), *keep]))
    file = open_file(planned, features)
    try:
        for row_groups in runs(planned):
            for table, whole in _converted(file, row_groups, names, features):
                for start in range(0, whole.num_rows, batch_rows):
                    stop = min(start + batch_rows, whole.num_rows)
                    yield table.slice(start, stop - start), whole.batch(start, stop)
    finally:
        file.close()


def runs(planned: FilePlan) -> Iterator[list[int]]:
    """Yield the row groups of a file that are decoded at once: many small ones, or a large one."""
    run: list[int] = []
    limit = _Limit()
    for row_group in range(len(planned.row_group_rows)):
        if limit.reached_with(planned, row_group) and run:
            yield run
            run, limit = [], _Limit()
            limit.reached_with(planned, row_group)
        run.append(row_group)
    if run:
        yield run


def _converted(
    file: OpenFile, row_groups: list[int], names: list[str], features: FeatureSpec
) -> Iterator[tuple[pa.Table, Columns]]:
    if len(row_groups) == 1:
        (row_group,) = row_groups
        for table, first_row in file.tables(row_group, names):
            where = (file.path, row_group)
            yield table, columns_from_table(table, features, where=where, first_row=first_row)
        return
    try:
        table = file.read(row_groups, names)
        columns = columns_from_table(table, features, where=(file.path, None))
    except DataError:  # one after the other, so that the message names it
        for row_group in row_groups:
            yield from _converted(file, [row_group], names, features)
    else:
        yield table, columns


def _empty_batch(features: FeatureSpec) -> Batch:
    return Batch(
        np.empty((0, len(features.tasks)) if features.tasks else 0, np.float32),
        np.empty((0, len(features.dense)), np.float32),
        tuple(
            Bags(
                np.empty(0, np.int64),
                None,
                np.empty(0, np.float32) if feature.weights is not None else None,
            )
            for feature in features.sparse
        ),
        None if features.weight is None else np.empty(0, np.float32),
        None if features.segment is None else Segments((), np.empty(0, np.uint8)),
        None if features.group is None else np.empty(0, np.int64),
    )
