"""Cuts what has arrived of a stream into batches, and says when an epoch of them is closed.

A plain state machine: time comes in as an argument, and what was decided by it is written down as
an extension of the plan.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from scheduler.coordinator.growing_plan import Cursor, Extension, PlanState
from worker.data.arrived import ArrivedFile, NewFile, PlannedBatch, Rows
from worker.data.streams import Position


class BatchCutter:
    """Cuts batches of one size, in the order of arrival.

    Where rows have waited for `close_seconds` for others, or the first batch of a step for the
    rest of its step, the epoch is closed: its last batch, and the last step, may be short. So no
    row is held back for longer.

    Files arrive when their source says so, but none before one that was taken before it, nor before
    a moment at which nothing else was there: so what is said of some time holds.

    Args:
        plan: whose extensions come next.
        batch_size: B, samples of a batch.
        group_size: M, batches of a step.
        close_seconds: how long rows may wait for others.
    """

    def __init__(
        self, plan: PlanState, *, batch_size: int, group_size: int, close_seconds: float
    ) -> None:
        self._batch_size = batch_size
        self._group_size = group_size
        self._close_seconds = close_seconds
        self._planned = plan.planned
        self._begin = plan.begins[-1]
        self._cursor = plan.cursor
        self._ends = plan.ends
        # With when they were found.
        self._rest: deque[tuple[Rows, float]] = deque()
        self._arrived = {file.number: file.at for file in plan.files}
        self._new_files: list[ArrivedFile] = []
        self._last_arrival = self._group_since = 0.0
        self._take_rest(plan.cursor)
        for batch_id in range(max(self._begin, plan.first), plan.planned):
            self._begins_group(batch_id, plan.batches[batch_id - plan.first].arrived)

    @property
    def position(self) -> Position:
        """Of the stream, where the plan goes on."""
        return self._cursor.position

    @property
    def skipped(self) -> tuple[int, int]:
        """Files and rows that were left out until there."""
        return self._cursor.skipped

    @property
    def arrived_until(self) -> float:
        """Before when nothing arrived that is in no batch yet, seconds since 1970."""
        return self._arrived[self._rest[0][0][0]] if self._rest else self._cursor.clock

    @property
    def rest_rows(self) -> int:
        """Rows that have arrived and are in no batch."""
        return sum(stop - start for (_, _, start, stop), _ in self._rest)

    def has_rows_for(self, batches: int) -> bool:
        """Whether so many batches can be cut of what has arrived."""
        return self.rest_rows >= batches * self._batch_size

    def follow(self, extension: Extension) -> None:
        """Take over an extension that was cut before, which comes next."""
        self._arrived.update((file.number, file.at) for file in extension.files)
        for batch_id, batch in enumerate(extension.batches, extension.first):
            self._begins_group(batch_id, batch.arrived)
        self._planned, self._cursor = extension.stop, extension.cursor
        self._ends = extension.ends
        if extension.closes:
            self._begin = self._planned
        self._take_rest(extension.cursor)

    def add(
        self,
        files: Sequence[NewFile],
        position: Position,
        now: float,
        *,
        skipped: tuple[int, int] = (0, 0),
        are_all: bool = True,
    ) -> None:
        """Files have arrived.

        Args:
            position: of the stream after them.
            now: seconds since 1970, when they were found.
            skipped: files and rows that were left out until then.
            are_all: whether nothing else is there now.
        """
        number, row_groups = self._cursor.next_file, self._cursor.next_position
        clock = self._cursor.clock
        for each in files:
            clock = max(clock, min(each.at, now))
            file = ArrivedFile(number, row_groups, each.plan, clock)
            number, row_groups = number + 1, row_groups + len(each.plan.row_group_rows)
            self._new_files.append(file)
            self._arrived[file.number] = clock
            self._rest.extend((rows, now) for rows in file.rows)
        if files:
            self._last_arrival = max(now, self._last_arrival)
        self._cursor = Cursor(
            position=position,
            next_file=number,
            next_position=row_groups,
            clock=max(clock, now) if are_all else clock,
            skipped=skipped,
        )

    def cut(self, now: float, *, most: int, ends: bool = False) -> Extension | None:
        """Return what the plan grows by now; None: by nothing.

        Args:
            most: batches at most.
            ends: nothing arrives any more.
        """
        if self._ends or most < 1:
            return None
        first, rest_rows = self._planned, self.rest_rows
        whole = min(most, rest_rows // self._batch_size)
        batches = [self._next_batch(self._batch_size) for _ in range(whole)]
        rest_rows -= whole * self._batch_size
        closes = rest_rows < self._batch_size and whole < most and (ends or self._is_late(now))
        if closes and rest_rows:
            batches.append(self._next_batch(rest_rows))
        closes = closes and self._planned > self._begin
        ends = ends and not self._rest
        if not batches and not closes and not ends:
            return None
        if closes:
            self._begin = self._planned
        files, self._new_files, self._ends = tuple(self._new_files), [], ends
        oldest = self._rest[0][0][0] if self._rest else self._cursor.next_file
        self._arrived = {n: at for n, at in self._arrived.items() if n >= oldest}
        self._cursor = replace(
            self._cursor,
            rest=tuple(rows for rows, _ in self._rest),
            rest_arrived=(self._rest[0][1] if self._rest else 0.0, self._last_arrival),
        )
        return Extension(
            first=first,
            batches=tuple(batches),
            files=files,
            closes=closes,
            ends=ends,
            cursor=self._cursor,
        )

    def _is_late(self, now: float) -> bool:
        """Whether rows have waited for too long, for others of their batch or of their step."""
        since = [self._rest[0][1]] if self._rest else []
        opened = self._planned - self._begin
        if opened % self._group_size:
            since.append(self._group_since)
        if opened:
            # Where the mode has changed, steps may begin elsewhere: at a pause all are closed.
            since.append(self._last_arrival)
        return bool(since) and now - min(since) >= self._close_seconds

    def _next_batch(self, rows: int) -> PlannedBatch:
        taken: list[Rows] = []
        since = arrived = self._rest[0][1]
        while rows:
            (file, group, start, stop), arrived = self._rest.popleft()
            if stop - start > rows:
                self._rest.appendleft(((file, group, start + rows, stop), arrived))
                stop = start + rows
            taken.append((file, group, start, stop))
            rows -= stop - start
        self._begins_group(self._planned, since)
        self._planned += 1
        return PlannedBatch(tuple(taken), arrived)

    def _begins_group(self, batch_id: int, since: float) -> None:
        """Note since when a step is open that this batch is the first of."""
        if (batch_id - self._begin) % self._group_size == 0:
            self._group_since = since

    def _take_rest(self, cursor: Cursor) -> None:
        first, self._last_arrival = cursor.rest_arrived
        self._rest = deque((rows, first) for rows in cursor.rest)
