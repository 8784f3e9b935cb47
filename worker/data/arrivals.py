"""The files of a stream, planned as they arrive; those that can't be used are kept aside."""

from collections.abc import Sequence
from typing import Literal

from worker.contract import ColumnKind
from worker.data.plan import FilePlan
from worker.data.planning import plan_arrived
from worker.data.streams import Position, Stream
from worker.errors import DataError
from worker.spec import FeatureSpec

# A stream may have many bad files: a person is told of the first ones, and of every tenth fold.
_TOLD_AT_FIRST = 10


class Arrivals:
    """Takes files of a stream and reads their footers.

    Args:
        stream: where they arrive.
        features: columns that they must have.
        kinds: what the sparse columns hold in the job's first file.
        on_bad_file: `fail` raises at a file that can't be used; `skip` leaves it out and says so.
    """

    def __init__(
        self,
        stream: Stream,
        features: FeatureSpec,
        *,
        kinds: Sequence[ColumnKind],
        on_bad_file: Literal["fail", "skip"],
    ) -> None:
        self.stream = stream
        self._features = features
        self._kinds = tuple(kinds)
        self._skip = on_bad_file == "skip"
        self._first: dict[tuple[str, str], tuple[str, str]] = {}
        self._notes: list[str] = []
        self.num_refused = 0

    @property
    def position(self) -> Position:
        return self.stream.position

    def take(self, *, most: int, now: float) -> list[FilePlan]:
        """Return the files that have arrived, planned, in their order; none is empty.

        Raises:
            StorageError: the source can't be asked for now.
            DataError: a file can't be used, with `fail`.
        """
        planned = []
        for path in self.stream.poll(most=most, now=now):
            try:
                file = plan_arrived(path, self._features, self._kinds, self._first)
            except DataError as error:
                if not self._skip:
                    raise
                self.num_refused += 1
                if self.num_refused <= _TOLD_AT_FIRST or self.num_refused % 1000 == 0:
                    self._notes.append(f"left out, the {self.num_refused}. file: {error}")
            else:
                if sum(file.row_group_rows):
                    planned.append(file)
        return planned

    def take_notes(self) -> list[str]:
        """Return, once, what a person should know of."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        self.stream.close()
