"""Decode the row groups of a plan: small ones together, large ones in parts."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from worker.data.columns import Columns, columns_from_table, join
from worker.data.open_file import LEAST_PART_ROWS, OpenFile, open_file
from worker.data.plan import ReadPlan
from worker.errors import DataError
from worker.spec import FeatureSpec

_OPEN_FILES = 32
_OPEN_STREAMS = 8


class Part(NamedTuple):
    """Rows that are decoded together: a row group, or one of the parts of a large one."""

    epoch: int  # 0 where all epochs have the same rows in the same order
    file: int
    row_group: int
    part: int = 0


@dataclass(slots=True, eq=False)
class _Stream:
    """A large row group that is being read from its beginning on; `part` is the next one.

    `keep` says whether parts are of use that are only passed; None: not known yet.
    """

    file: int
    row_group: int
    tables: Iterator[pa.Table]
    part: int = 0
    keep: bool | None = None


class Decoder:
    """Turns row groups into columns, for one thread.

    Where rows keep the file's order a large row group is decoded in parts, one after the other, so
    that memory doesn't grow with it; where they are shuffled within it, it is needed whole.

    Args:
        plan: whose row groups are decoded.
        features: the columns to read.

    Attributes:
        errors: of the (file, row group, part)s that can't be used, as far as they were tried. What
            was unreadable once stays so, and of a large row group all that comes after it.
    """

    def __init__(self, plan: ReadPlan, features: FeatureSpec) -> None:
        self._plan = plan
        self._features = features
        self._names = features.columns()
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._streams: list[_Stream] = []
        self._part_rows: dict[tuple[int, int], int] = {}
        self.errors: dict[tuple[int, int, int], DataError] = {}

    def part_rows(self, file: int, row_group: int) -> int:
        """Return the rows of each part of a row group, as many as it has where it has one part."""
        rows = self._plan.file(file).row_group_rows[row_group]
        if rows <= LEAST_PART_ROWS or self._plan.shuffle == "rows":
            return rows
        known = self._part_rows.get((file, row_group))
        if known is None:
            try:
                known = min(rows, self._file(file).part_rows(row_group, self._names))
            except DataError:  # decoding will meet it again
                known = rows
            self._part_rows[file, row_group] = known
        return known

    def row_groups(self, parts: list[Part]) -> tuple[Columns, list[Part]] | None:
        """Decode whole row groups, each in the order that the plan gives to its rows.

        Returns:
            The rows of one after the other, and which they are, in the order that was asked for.
            The others have their errors. None: none can be used.
        """
        decoded: list[Columns] = []
        first: dict[Part, int] = {}
        rows = 0
        for file in dict.fromkeys(part.file for part in parts):
            for columns, held in self._of_file([part for part in parts if part.file == file]):
                decoded += columns
                columns.clear()  # joining frees column after column
                for part in held:
                    first[part] = rows
                    rows += self._rows(part)
        found = [part for part in parts if part in first]
        if not found:
            return None
        return join(decoded, self._order(found, first)), found

    def parts_up_to(self, last: Part, *, room: int) -> Iterator[tuple[Part, Columns]]:
        """Decode a part of a large row group, and what lies before it as far as that is needed.

        Args:
            last: the part.
            room: where the row group's columns take no more bytes than this, the parts that are
                passed are given out, too. For lanes that begin within one row group.
        """
        rows = self.part_rows(last.file, last.row_group)
        count = -(-self._rows(last) // rows)
        part = last
        try:
            stream = self._stream(last, rows)
            while stream.part <= last.part:
                part = last._replace(part=stream.part)
                table = next(stream.tables)
                stream.part += 1
                if part == last or stream.keep is not False:
                    columns = self._part_columns(table, part, first_row=part.part * rows)
                    if columns is not None:
                        if stream.keep is None:
                            stream.keep = columns.nbytes * count <= room
                        if part == last or stream.keep:
                            yield part, columns
            if stream.part == count:
                self._streams.remove(stream)
        except DataError as error:
            self._streams = [s for s in self._streams if s.file != last.file]
            for number in range(part.part, count):
                self.errors[last.file, last.row_group, number] = error

    def forget_files(self, below: int) -> None:
        """No row of files with lower numbers is decoded any more: keep nothing of them."""
        self._streams = [stream for stream in self._streams if stream.file >= below]
        for number in [number for number in self._open if number < below]:
            self._open.pop(number).close()
        self._part_rows = {key: n for key, n in self._part_rows.items() if key[0] >= below}
        self.errors = {key: error for key, error in self.errors.items() if key[0] >= below}

    def close(self) -> None:
        """Close the files; the decoder may be used again."""
        self._streams.clear()
        while self._open:
            self._open.popitem()[1].close()

    def _rows(self, part: Part) -> int:
        return self._plan.file(part.file).row_group_rows[part.row_group]

    def _of_file(self, parts: list[Part]) -> Iterator[tuple[list[Columns], list[Part]]]:
        """Decode row groups of one file, each on its own where one has an error.

        Yields the columns of the row groups, in pieces that follow each other.
        """
        tables: Iterable[tuple[pa.Table, int]]
        try:
            file = self._file(parts[0].file)
            if len(parts) > 1:
                tables = [(file.read([part.row_group for part in parts], self._names), 0)]
            else:
                tables = file.tables(parts[0].row_group, self._names)
            where = (file.path, parts[0].row_group if len(parts) == 1 else None)
            columns = [
                columns_from_table(table, self._features, where=where, first_row=first_row)
                for table, first_row in tables
            ]
        except DataError as error:
            if len(parts) == 1:
                self.errors[parts[0][1:]] = error
            else:
                for part in parts:
                    yield from self._of_file([part])
        else:
            yield columns, parts

    def _part_columns(self, table: pa.Table, part: Part, first_row: int) -> Columns | None:
        """The columns of a part; None where a value is refused, which its error says."""
        where = (self._plan.file(part.file).path, part.row_group)
        try:
            return columns_from_table(table, self._features, where=where, first_row=first_row)
        except DataError as error:
            self.errors[part[1:]] = error
            return None

    def _order(self, found: list[Part], first: dict[Part, int]) -> npt.NDArray[np.int64] | None:
        """Positions of the rows of `found` among those decoded; None: they are in order."""
        orders = [self._plan.row_order(*part[:3]) for part in found]
        starts = [first[part] for part in found]
        if all(order is None for order in orders) and starts == sorted(starts):
            return None
        return np.concatenate(
            [
                start + (np.arange(self._rows(part)) if order is None else order)
                for part, start, order in zip(found, starts, orders, strict=True)
            ]
        )

    def _stream(self, part: Part, rows: int) -> _Stream:
        """Return the stream that is nearest before a part, or a new one."""
        place = part.file, part.row_group
        fit = [s for s in self._streams if (s.file, s.row_group) == place and s.part <= part.part]
        if fit:
            stream = max(fit, key=lambda s: s.part)
            self._streams.remove(stream)
        else:
            tables = self._file(part.file).parts(part.row_group, self._names, rows)
            stream = _Stream(part.file, part.row_group, tables)
        self._streams.append(stream)  # the one used last is kept longest
        del self._streams[:-_OPEN_STREAMS]
        return stream

    def _file(self, index: int) -> OpenFile:
        file = self._open.get(index)
        if file is not None:
            self._open.move_to_end(index)
            return file
        file = open_file(self._plan.file(index), self._features, dictionaries=True)
        self._open[index] = file
        if len(self._open) > _OPEN_FILES:
            closed, oldest = self._open.popitem(last=False)
            self._streams = [s for s in self._streams if s.file != closed]
            oldest.close()
        return file
