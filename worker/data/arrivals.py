"""The files of a stream, planned as they arrive; those that can't be used are kept aside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from worker.contract import ColumnKind
from worker.data.arrived import NewFile
from worker.data.bad_records import keep_aside, refused_rows, without_rows
from worker.data.plan import FilePlan
from worker.data.planning import plan_arrived
from worker.data.quarantine import keep_name
from worker.data.streams import Position, Stream
from worker.errors import DataError
from worker.spec import FeatureSpec

OnBadRecord = Literal["fail", "skip", "quarantine"]

# A stream may have many bad files: a person is told of the first ones, and of every tenth fold.
_TOLD_AT_FIRST = 10


class Arrivals:
    """Takes files of a stream and reads their footers.

    Args:
        stream: where they arrive.
        features: columns that they must have.
        kinds: what the sparse columns hold in the job's first file.
        on_bad_file: `fail` raises at a file that can't be used; `skip` leaves it out and says so.
        on_bad_record: `fail`: whoever trains a row that can't be used finds it; `skip` leaves such
            rows out, `quarantine` keeps them aside, too, and what is said of files that are left
            out. Each file is read for it before it is planned.
        aside: the folder for that.
        skipped: files and rows that were left out before.
    """

    def __init__(
        self,
        stream: Stream,
        features: FeatureSpec,
        *,
        kinds: Sequence[ColumnKind],
        on_bad_file: Literal["fail", "skip"],
        on_bad_record: OnBadRecord = "fail",
        aside: Path | None = None,
        skipped: tuple[int, int] = (0, 0),
    ) -> None:
        self.stream = stream
        self._features = features
        self._kinds = tuple(kinds)
        self._skip = on_bad_file == "skip"
        self._on_bad_record = on_bad_record
        self._aside = aside if on_bad_record == "quarantine" else None
        self._first: dict[tuple[str, str], tuple[str, str]] = {}
        self._notes: list[str] = []
        self.num_refused, self.num_refused_rows = skipped
        self.first_refused: list[str] = []

    @property
    def skipped(self) -> tuple[int, int]:
        """Files and rows that were left out since the stream began."""
        return self.num_refused, self.num_refused_rows

    @property
    def took_all(self) -> bool:
        """Whether nothing else was there when files were last taken."""
        return self.stream.took_all

    @property
    def position(self) -> Position:
        return self.stream.position

    def take(self, *, most: int, now: float) -> list[NewFile]:
        """Return the files that have arrived, planned, in their order; none is empty.

        Raises:
            StorageError: the source can't be asked for now.
            DataError: a file can't be used, with `fail`.
        """
        planned = []
        for arrival in self.stream.poll(most=most, now=now):
            path = arrival.path
            try:
                file = plan_arrived(path, self._features, self._kinds, self._first)
                if self._on_bad_record != "fail":
                    file = self._without_bad_rows(file)
            except DataError as error:
                if not self._skip:
                    raise
                self._refuse(path, error)
            else:
                if sum(file.row_group_rows):
                    planned.append(NewFile(file, arrival.at))
        return planned

    def take_notes(self) -> list[str]:
        """Return, once, what a person should know of."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        self.stream.close()

    def _refuse(self, path: str, error: DataError) -> None:
        self.num_refused += 1
        if len(self.first_refused) < _TOLD_AT_FIRST:
            self.first_refused.append(path)
        if self.num_refused <= _TOLD_AT_FIRST or self.num_refused % 1000 == 0:
            self._notes.append(f"left out, the {self.num_refused}. file: {error}")
        if self._aside is not None:
            keep_name(self._aside, path, str(error))

    def _without_bad_rows(self, file: FilePlan) -> FilePlan:
        refused = refused_rows(file, self._features)
        if not refused:
            return file
        told = self.num_refused_rows // 1000
        is_new = self.num_refused_rows == 0
        self.num_refused_rows += len(refused)
        where = ""
        if self._aside is not None:
            where = f", kept in {keep_aside(self._aside, file, refused)}"
        if is_new or self.num_refused_rows // 1000 > told:
            row, reason = next(iter(refused.items()))
            self._notes.append(
                f"{len(refused):,} rows of {file.path} are left out ({self.num_refused_rows:,} of"
                f" all files){where}: row {row}: {reason}"
            )
        return without_rows(file, refused)
