"""The plan of a stream: it grows by what arrives, and forgets what is resolved.

A plain state machine. Somebody cuts what has arrived into batches, writes each *extension* down,
and tells it: so what was decided by a clock is a record, and whoever goes on has the same batches.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.data.arrived import ArrivedFile, BatchRows, PlannedBatch, Rows

# Where an epoch ends of which nobody knows the end.
OPEN = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where in the stream the next batch begins.

    Args:
        position: of the stream, as it has it itself: what lies before it was taken.
        rest: rows that were taken and are in no batch yet.
        rest_arrived: when the first and the last of them were found, seconds since 1970.
        next_file, next_position: the number of the next file, and of its first row group.
        clock: nothing is to come that arrived before, seconds since 1970.
        skipped: files and rows that were left out since the stream began.
    """

    position: dict[str, Any] = field(default_factory=dict)
    rest: tuple[Rows, ...] = ()
    rest_arrived: tuple[float, float] = (0.0, 0.0)
    next_file: int = 0
    next_position: int = 0
    clock: float = 0.0
    skipped: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What a plan grows by.

    Args:
        first: id of the first of the batches.
        batches: with ids from there on.
        files: that came with them, or with the rest.
        closes: no batch is added to the open epoch after these: its last step may be short.
        ends: nothing is added any more.
        cursor: where the next extension begins.
    """

    first: int
    batches: tuple[PlannedBatch, ...] = ()
    files: tuple[ArrivedFile, ...] = ()
    closes: bool = False
    ends: bool = False
    cursor: Cursor = field(default_factory=Cursor)

    @property
    def stop(self) -> int:
        """The id after the last of the batches."""
        return self.first + len(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """A plan at some moment, without what is resolved.

    Args:
        planned: how many batches were ever planned; the last of them are in `batches`.
        begins: where epochs begin: the first that is not resolved, and those after it.
        files: of the batches and of the rest.
        cursor: where the next extension begins.
        ends: whether nothing is added any more.
    """

    planned: int = 0
    batches: tuple[PlannedBatch, ...] = ()
    begins: tuple[int, ...] = (0,)
    files: tuple[ArrivedFile, ...] = ()
    cursor: Cursor = field(default_factory=Cursor)
    ends: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where it is the state of no plan."""
        if self.first < 0 or not self.begins or self.begins[0] < 0:
            raise ValueError(f"a plan of {self.planned} batches begins at {self.begins}")
        if list(self.begins) != sorted(set(self.begins)) or self.begins[-1] > self.planned:
            raise ValueError(f"epochs of {self.planned} batches begin at {self.begins}")
        known = {file.number: file.plan for file in self.files}
        for number, group, start, stop in (*self._rows(), *self.cursor.rest):
            rows = known[number].row_group_rows if number in known else ()
            if not (0 <= group < len(rows) and 0 <= start < stop <= rows[group]):
                raise ValueError(f"rows {start} to {stop} of file {number} are planned, not there")

    @property
    def first(self) -> int:
        """The id of the first batch that it has."""
        return self.planned - len(self.batches)

    @property
    def oldest_path(self) -> str | None:
        """The first file of which rows are planned or wait to be; None: there is none."""
        waits = [*(batch.rows[0] for batch in self.batches[:1]), *self.cursor.rest[:1]]
        number = waits[0][0] if waits else None
        return next((file.plan.path for file in self.files if file.number == number), None)

    def _rows(self) -> list[Rows]:
        return [rows for batch in self.batches for rows in batch.rows]


class GrowingPlan:
    """The batches of a stream that are not resolved; what `LedgerPlan` is of files that are there.

    Each stretch that was closed is an epoch of its own: no step spans two, and the last step of
    one may be short. A closed epoch never gains a batch.

    Args:
        state: to go on from.
        lanes: batches of one file belong to one of so many lanes.
    """

    def __init__(self, state: PlanState, *, lanes: int) -> None:
        self.planned = state.planned
        self.ends = state.ends
        self.cursor = state.cursor
        self._lanes = lanes
        self._batches = dict(enumerate(state.batches, state.first))
        self._files = {file.number: file for file in state.files}
        self._begins = list(state.begins)
        self._first_epoch = 0

    @property
    def total(self) -> int:
        """How many batches there will be."""
        return self.planned if self.ends else OPEN

    def grow(self, extension: Extension) -> None:
        """Take what has arrived; an extension that is known already changes nothing.

        Raises:
            ValueError: it does not follow what is known.
        """
        if self.ends or (extension.first < self.planned and extension.stop <= self.planned):
            return
        if extension.first != self.planned:
            raise ValueError(
                f"the plan has {self.planned} batches, and is to grow by those from"
                f" {extension.first} on"
            )
        for file in extension.files:
            self._files[file.number] = file
        self._batches.update(enumerate(extension.batches, extension.first))
        self.planned = extension.stop
        if extension.closes and self._begins[-1] < self.planned:
            self._begins.append(self.planned)
        self.ends, self.cursor = extension.ends, extension.cursor

    def state(self) -> PlanState:
        """Return what another plan needs to go on from here."""
        return PlanState(
            planned=self.planned,
            batches=tuple(self._batches.values()),
            begins=tuple(self._begins),
            files=tuple(self._files.values()),
            cursor=self.cursor,
            ends=self.ends,
        )

    def forget(self, *, below: int) -> None:
        """Keep nothing of batches that are resolved, and of files that only these have rows of."""
        for batch_id in range(self.known_from, min(below, self.planned)):
            del self._batches[batch_id]
        while len(self._begins) > 1 and self._begins[1] <= below:
            del self._begins[0]
            self._first_epoch += 1
        oldest = self.oldest_file
        while self._files and next(iter(self._files)) < oldest:
            del self._files[next(iter(self._files))]

    @property
    def oldest_file(self) -> int:
        """The first file that a batch or the rest has rows of: files follow each other."""
        if self._batches:
            return next(iter(self._batches.values())).rows[0][0]
        return self.cursor.rest[0][0] if self.cursor.rest else self.cursor.next_file

    @property
    def known_from(self) -> int:
        """The first batch id of which the rows are known."""
        return self.planned - len(self._batches)

    def rows_of(self, batch_id: int) -> int:
        """Return the planned samples of a batch."""
        return self._batches[batch_id].num_samples

    def arrived(self, batch_id: int) -> float:
        """Return when the last row of a batch arrived, seconds since 1970."""
        return self._files[self._batches[batch_id].rows[-1][0]].at

    def lane_of(self, batch_id: int) -> int:
        """Return the lane of a batch: who decodes a file goes on with it."""
        return self._batches[batch_id].rows[0][0] % self._lanes

    def epoch_of(self, batch_id: int) -> int:
        """Return the epoch of a batch; no step spans two."""
        return self._first_epoch + bisect_right(self._begins, batch_id) - 1

    def epoch_range(self, epoch: int) -> tuple[int, int]:
        """Return the first batch id of an epoch, and the one after its last, `OPEN` if unknown."""
        number = epoch - self._first_epoch
        if number + 1 < len(self._begins):
            return self._begins[number], self._begins[number + 1]
        return self._begins[number], self.total

    def granted(self, batch_ids: Sequence[int]) -> tuple[BatchRows, ...]:
        """Return what a worker has to know of batches that it is given."""
        return tuple(self._batch_rows(batch_id) for batch_id in batch_ids)

    def _batch_rows(self, batch_id: int) -> BatchRows:
        rows = self._batches[batch_id].rows
        files = tuple(self._files[number] for number in dict.fromkeys(each[0] for each in rows))
        return BatchRows(batch_id, rows, files, self.oldest_file)
