"""Rows of a stream as they have arrived: which files, which rows of them make which batch.

A plan that is complete maps batch ids to rows by itself (`worker.data.plan`). Of a stream every
batch is written down when it is cut, and goes to the worker with its token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.data.plan import FilePlan, Piece

Rows = tuple[int, int, int, int]
"""Rows of one row group: number of the file, row group, first row, the one after the last."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that can be used: its plan, and when its source says that it arrived."""

    plan: FilePlan
    at: float


@dataclass(frozen=True, slots=True)
class ArrivedFile:
    """A file of a stream.

    Args:
        number: of the stream's files, in the order in which they came; unique in a job.
        position: of its first row group among those of all files.
        plan: the file.
        at: when it arrived, seconds since 1970; it never falls from one file to the next.
    """

    number: int
    position: int
    plan: FilePlan
    at: float = 0.0

    @property
    def rows(self) -> tuple[Rows, ...]:
        """All rows of the file."""
        groups = enumerate(self.plan.row_group_rows)
        return tuple((self.number, group, 0, rows) for group, rows in groups if rows)


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch that was cut from what had arrived.

    Args:
        rows: in their order.
        arrived: when the last of them was found, seconds since 1970.
    """

    rows: tuple[Rows, ...]
    arrived: float

    @property
    def num_samples(self) -> int:
        return sum(stop - start for _, _, start, stop in self.rows)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """What a worker is told of a batch.

    Args:
        batch_id: the batch.
        rows: in their order.
        files: that they are in.
        oldest_file: no batch that is still to come has rows of a file before that one.
    """

    batch_id: int
    rows: tuple[Rows, ...]
    files: tuple[ArrivedFile, ...]
    oldest_file: int = 0


class ArrivedPlan:
    """The batches of a stream that one worker was told of: what a `Reader` reads them by.

    Rows keep the order of their files; there are no epochs.
    """

    shuffle = "none"

    def __init__(self) -> None:
        self._batches: dict[int, tuple[Rows, ...]] = {}
        self._files: dict[int, ArrivedFile] = {}

    def add(self, batch: BatchRows) -> None:
        """A batch was granted."""
        self._batches[batch.batch_id] = batch.rows
        for file in batch.files:
            self._files[file.number] = file

    def forget_files(self, below: int) -> None:
        """No batch that is still wanted has rows of files with lower numbers."""
        for number in [number for number in self._files if number < below]:
            del self._files[number]
        self._batches = {
            batch_id: rows
            for batch_id, rows in self._batches.items()
            if all(number >= below for number, *_ in rows)
        }

    def file(self, number: int) -> FilePlan:
        return self._files[number].plan

    def epoch_of(self, batch_id: int) -> int:
        return 0

    def taken_again(self, epoch: int) -> bool:
        """No row is taken a second time."""
        return False

    def pieces(self, batch_id: int) -> list[Piece]:
        """Return where the rows of a batch are; raises IndexError where it was not granted."""
        if batch_id not in self._batches:
            raise IndexError(f"batch {batch_id} was granted without its rows")
        return [
            Piece(file, group, start, stop, self._files[file].position + group)
            for file, group, start, stop in self._batches[batch_id]
        ]

    def row_groups_from(self, epoch: int, position: int) -> Iterator[tuple[int, int]]:
        """Yield files and row groups from a position on as far as they are known here."""
        for number in sorted(self._files):
            file = self._files[number]
            if file.position > position:
                return  # what comes next is not known
            for group, rows in enumerate(file.plan.row_group_rows):
                if file.position + group == position:
                    position += 1
                    if rows:
                        yield number, group

    def row_order(self, epoch: int, file: int, row_group: int) -> None:
        """Rows keep the file's order."""
