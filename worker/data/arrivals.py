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
from worker.data.streams import Lag, Position, Stream
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
        agreed: what columns hold, by role and name, and the first file that has it so, for streams
            that must agree.

    Attributes:
        skipped: files and rows that were left out since the stream began.
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
        agreed: dict[tuple[str, str], tuple[str, str]] | None = None,
    ) -> None:
        self.features = features
        self._stream = stream
        self._kinds = tuple(kinds)
        self._skip = on_bad_file == "skip"
        self._on_bad_record = on_bad_record
        self._aside = aside if on_bad_record == "quarantine" else None
        self._first = {} if agreed is None else agreed
        self._notes: list[str] = []
        self.skipped = skipped
        self.first_refused: list[str] = []

    @property
    def took_all(self) -> bool:
        """Whether nothing else was there when files were last taken."""
        return self._stream.took_all

    @property
    def position(self) -> Position:
        return self._stream.position

    @property
    def waits(self) -> bool:
        """Whether samples that were taken are still to be given out."""
        return False

    @property
    def figures(self) -> None:
        """Samples come with their labels."""

    def seek(self, position: Position) -> None:
        """Go on after what was taken at a position; raises ValueError where it is none."""
        self._stream.seek(position)

    def finish(self) -> None:
        """Nothing is wanted any more but what has arrived by now."""

    def lag(self) -> Lag:
        """Return what waits in the stream."""
        return self._stream.lag()

    def is_in_cut(self, position: Position, oldest: str | None) -> None:
        """Hear how far a checkpoint is; see `Stream.is_in_cut`."""
        self._stream.is_in_cut(position, oldest)

    def remove(self, path: str) -> None:
        """Let go of a file; see `Stream.remove`."""
        self._stream.remove(path)

    def take(self, *, most: int, now: float) -> list[NewFile]:
        """Return the files that have arrived, planned, in their order; none is empty.

        Raises:
            StorageError: the source can't be asked for now.
            DataError: a file can't be used, with `fail`.
        """
        planned = []
        for arrival in self._stream.poll(most=most, now=now):
            path = arrival.path
            try:
                file = plan_arrived(path, self.features, self._kinds, self._first)
                if self._on_bad_record != "fail":
                    file = self._without_bad_rows(file)
            except DataError as error:
                self.refuse(path, error)
            else:
                if sum(file.row_group_rows):
                    planned.append(NewFile(file, arrival.at))
        return planned

    def take_notes(self) -> list[str]:
        """Return, once, what a person should know of."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        self._stream.close()

    def refuse(self, path: str, error: DataError) -> None:
        """Leave a file out that can't be used; raises its error where that ends the job."""
        if not self._skip:
            raise error
        files, rows = self.skipped
        files += 1
        self.skipped = files, rows
        if len(self.first_refused) < _TOLD_AT_FIRST:
            self.first_refused.append(path)
        if files <= _TOLD_AT_FIRST or files % 1000 == 0:
            self._notes.append(f"left out, the {files}. file: {error}")
        if self._aside is not None:
            keep_name(self._aside, path, str(error))

    def _without_bad_rows(self, file: FilePlan) -> FilePlan:
        refused = refused_rows(file, self.features)
        if not refused:
            return file
        files, told = self.skipped
        rows = told + len(refused)
        self.skipped = files, rows
        where = ""
        if self._aside is not None:
            where = f", kept in {keep_aside(self._aside, file, refused)}"
        if not told or rows // 1000 > told // 1000:
            row, reason = next(iter(refused.items()))
            self._notes.append(
                f"{len(refused):,} rows of {file.path} are left out ({rows:,} of"
                f" all files){where}: row {row}: {reason}"
            )
        return without_rows(file, refused)
