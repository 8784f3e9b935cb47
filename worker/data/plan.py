"""The plan of the data: the frozen map from batch ids to rows of files.

docs/design.md, section 4. It depends on the files and on `DataSpec` alone, never on who reads.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64, mix_text
from worker.contract import ColumnKind
from worker.data.file_columns import FileColumn
from worker.errors import DataError

_ORDERS_KEPT = 2

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file of the plan.

    Args:
        path: local path or URL.
        size: of the file in bytes.
        row_group_rows: rows of each row group, without deleted ones.
        footer_digest: sha256 of the footer, in hexadecimal: the file is what was planned.
        columns: those of the job that the file has by another name or not at all.
        kept: which rows its table still has, as `worker.data.deleted_rows.pack` writes it; empty:
            all.
    """

    path: str
    size: int
    row_group_rows: tuple[int, ...]
    footer_digest: str
    columns: tuple[FileColumn, ...] = ()
    kept: str = ""

    def check_unchanged(self, size: int, footer_digest: str) -> None:
        """Raise DataError where the file that is there now is another one than the planned."""
        if (size, footer_digest) == (self.size, self.footer_digest):
            return
        resized = f"got {size} bytes, expected {self.size}"
        raise DataError(
            what="a file changed since it was planned",
            file=self.path,
            got=resized if size != self.size else "its footer is another one",
            remedy="Restore the file, or start a new run",
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of one row group, counted in the order of `Plan.row_order`.

    `position` is that of the row group in the epoch's order.
    """

    file: int
    row_group: int
    start: int
    stop: int
    position: int


class ReadPlan(Protocol):
    """What a reader needs to know of a plan, be it complete or growing."""

    @property
    def shuffle(self) -> str: ...

    def file(self, number: int) -> FilePlan: ...

    def epoch_of(self, batch_id: int) -> int: ...

    def taken_again(self, epoch: int) -> bool: ...

    def pieces(self, batch_id: int) -> list[Piece]: ...

    def row_groups_from(self, epoch: int, position: int) -> Iterator[tuple[int, int]]: ...

    def row_order(self, epoch: int, file: int, row_group: int) -> _Ints | None: ...


class _EpochOrder(NamedTuple):
    """Row groups in the order of an epoch; `starts` are the rows before each, and all rows."""

    files: _Ints
    row_groups: _Ints
    starts: _Ints


@dataclass(frozen=True)
class Plan:
    """Which rows make which batch.

    Batch ids count over epochs: `epoch * batches_per_epoch + i`. Batch i of an epoch belongs to
    lane `i mod lanes`; each lane reads a consecutive range of the epoch's rows. Only batch
    `batches_per_epoch - 1` may be shorter than `batch_size`.

    Args:
        files: in the order in which they were named.
        batch_size: samples in a batch.
        lanes: consecutive ranges that are read side by side.
        epochs: times that every row is read.
        shuffle: `none`, `files` or `rows`, as in `DataSpec`.
        seed: of the shuffle.
        skipped_files: files that were left out because their footers can't be read.
        tables: the tables that were named, with their versions.
        kinds: what the sparse columns hold.
    """

    files: tuple[FilePlan, ...]
    batch_size: int
    lanes: int = 1
    epochs: int = 1
    shuffle: Literal["none", "files", "rows"] = "none"
    seed: int = 0
    skipped_files: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    kinds: tuple[ColumnKind, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("lanes", self.lanes)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_json, (self.to_json(),)  # without what is derived and kept

    def file(self, number: int) -> FilePlan:
        """Return a file by its place in `files`."""
        return self.files[number]

    @cached_property
    def rows_per_epoch(self) -> int:
        return sum(sum(file.row_group_rows) for file in self.files)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def total_batches(self) -> int:
        return self.batches_per_epoch * self.epochs

    def rows_of(self, batch_id: int) -> int:
        """Return the planned number of samples of a batch."""
        _, index = self._position(batch_id)
        start, stop = self._row_range(index)
        return stop - start

    def lane_of(self, batch_id: int) -> int:
        """Return the lane that a batch belongs to."""
        _, index = self._position(batch_id)
        return index % self.lanes

    def epoch_of(self, batch_id: int) -> int:
        """Return the epoch that a batch belongs to."""
        epoch, _ = self._position(batch_id)
        return epoch

    def taken_again(self, epoch: int) -> bool:
        """Whether a later epoch takes the rows of row groups in the order of this one."""
        return self.shuffle != "rows" and epoch + 1 < self.epochs

    def pieces(self, batch_id: int) -> list[Piece]:
        """Return where the rows of a batch are, in its order; together `rows_of(batch_id)` rows.

        Raises:
            IndexError: the plan has no such batch.
        """
        epoch, index = self._position(batch_id)
        start, stop = self._row_range(index)
        order = self._order(epoch)
        pieces = []
        at = int(np.searchsorted(order.starts, start, side="right")) - 1
        while start < stop:
            first, end = int(order.starts[at]), min(stop, int(order.starts[at + 1]))
            if start < end:  # row groups may be empty
                file, row_group = int(order.files[at]), int(order.row_groups[at])
                pieces.append(Piece(file, row_group, start - first, end - first, at))
                start = end
            at += 1
        return pieces

    def row_groups_from(self, epoch: int, position: int) -> Iterator[tuple[int, int]]:
        """Yield files and row groups of an epoch's order from a position on, but for empty ones."""
        order = self._order(epoch)
        for at in range(position, len(order.files)):
            if order.starts[at] < order.starts[at + 1]:
                yield int(order.files[at]), int(order.row_groups[at])

    def row_order(self, epoch: int, file: int, row_group: int) -> _Ints | None:
        """Return the order in which an epoch takes the rows of a row group.

        Returns:
            int64[n], a permutation; None where rows keep the file's order.
        """
        if self.shuffle != "rows":
            return None
        rows = self.files[file].row_group_rows[row_group]
        return _permutation(f"rows/{epoch}/{file}/{row_group}", self.seed, rows)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able values."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Plan":
        """Read a plan back from `to_json`."""
        files = tuple(
            FilePlan(
                **{
                    **file,
                    "row_group_rows": tuple(file["row_group_rows"]),
                    "columns": tuple(FileColumn(**column) for column in file["columns"]),
                }
            )
            for file in data["files"]
        )
        names = {name: tuple(data[name]) for name in ("skipped_files", "tables")}
        kinds = tuple(ColumnKind(**kind) for kind in data["kinds"])
        return Plan(**{**data, "files": files, "kinds": kinds, **names})

    def _position(self, batch_id: int) -> tuple[int, int]:
        """Epoch, and position in it."""
        if not 0 <= batch_id < self.total_batches:
            raise IndexError(f"batch id {batch_id} is not in the plan's [0, {self.total_batches})")
        return divmod(batch_id, self.batches_per_epoch)

    def _row_range(self, index: int) -> tuple[int, int]:
        """Rows [start, stop) of a batch, in the epoch's order of rows."""
        batches, rows = self.batches_per_epoch, self.rows_per_epoch
        lane, before = index % self.lanes, index // self.lanes
        each, more = divmod(batches, self.lanes)
        # Lanes follow each other; the first `more` of them have one batch more than the others.
        start = (lane * each + min(lane, more) + before) * self.batch_size
        missing = batches * self.batch_size - rows
        if lane > (batches - 1) % self.lanes:
            start -= missing
        stop = start + self.batch_size
        return (start, stop - missing) if index == batches - 1 else (start, stop)

    @cached_property
    def _orders(self) -> dict[int, _EpochOrder]:
        return {}

    def _order(self, epoch: int) -> _EpochOrder:
        key = 0 if self.shuffle == "none" else epoch
        order = self._orders.get(key)
        if order is None:
            order = self._make_order(epoch)
            while len(self._orders) >= _ORDERS_KEPT:
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = order
        return order

    def _make_order(self, epoch: int) -> _EpochOrder:
        order = np.arange(len(self.files))
        if self.shuffle == "files":
            order = _permutation(f"files/{epoch}", self.seed, len(self.files))
        groups = [self.files[int(file)].row_group_rows for file in order]
        files = np.repeat(order, [len(rows) for rows in groups])
        row_groups = np.array([i for rows in groups for i in range(len(rows))], np.int64)
        rows = np.array(list(itertools.chain.from_iterable(groups)), np.int64)
        if self.shuffle == "rows":
            order = _permutation(f"row_groups/{epoch}", self.seed, rows.size)
            files, row_groups, rows = files[order], row_groups[order], rows[order]
        return _EpochOrder(files, row_groups, np.concatenate(([0], np.cumsum(rows))))


@njit(cache=True, nogil=True)
def _shuffle(state: np.uint64, order: npt.NDArray[np.int64]) -> None:
    for i in range(order.size - 1, 0, -1):
        j = np.int64(mix64(state + np.uint64(i)) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]


def _permutation(purpose: str, seed: int, size: int) -> _Ints:
    """A permutation of range(size), the same with every version of every library."""
    order = np.arange(size)
    _shuffle(np.uint64(mix_text(purpose, seed)), order)
    return order
