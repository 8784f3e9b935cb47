"""Samples of one stream with the labels of another, as files that hold both.

docs/design.md, section 4, Labels of another stream. Both streams are read in order, `LabelJoin`
says which samples have their label, and these are written into files, which are planned as any
others. What a clock decided is a *step*, and is in the log before anyone trains what it gave.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.durable import make_folder, new_file
from runtime.storage import StorageError
from worker.data.arrivals import Arrivals
from worker.data.arrived import NewFile
from worker.data.footers import open_source, read_footer
from worker.data.join_log import JoinLog, JoinStep, Kept, TakenFile
from worker.data.label_join import JoinCounts, Joined, Keys, LabelJoin, Labels
from worker.data.planning import plan_arrived
from worker.data.streams import Lag, Position
from worker.data.task_join import MASKED, TaskJoin
from worker.data.waiting_rows import WaitingRows, keys_in, labels_in
from worker.errors import UnreadableError
from worker.spec import FeatureSpec

MOST_ROWS = 1 << 18
"""Rows of each stream that are taken at once, and a file's more."""
ROW_GROUP_ROWS = 1 << 16
LEAST_SAVED = 1 << 16
SAVED_AGAIN = 1.0
"""What is remembered is written down once so many rows have come, and this share of what it is."""
FILES_AT_ONCE = 8
_ORPHANS = 100  # and not one that found its sample: by then it is no accident
_OLDEST = b"synchromesh.oldest"
_NAME = re.compile(r"(\d{12})-\d+\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFigures:
    """What waits for labels, and what became of samples and labels.

    Args:
        counts: since the streams began.
        counts_of: the same by column of labels, where there are several.
        waiting: samples that wait for a label.
        remembered: samples that a label may still change, and labels that samples may come for.
        lag: of the stream of labels.
    """

    counts: JoinCounts
    counts_of: Mapping[str, JoinCounts]
    waiting: int
    remembered: tuple[int, int]
    lag: Lag


@dataclass(slots=True)
class _Side:
    """One of the two streams: what was taken and is in no step, and until when all is known."""

    arrivals: Arrivals
    until: float = 0.0
    taken: list[TakenFile] = field(default_factory=list)
    took_all: bool = False
    is_over: bool = False  # nothing is taken any more
    out_of_reach: StorageError | None = None

    def take(self, *, most: int, now: float, is_wanted: Callable[[], bool]) -> None:
        """Take what has arrived, as long as more is wanted."""
        self.took_all = self.is_over
        rows = sum(sum(file.plan.row_group_rows) for file in self.taken)
        while not self.took_all and len(self.taken) < most and rows < MOST_ROWS and is_wanted():
            try:
                files = self.arrivals.take(most=FILES_AT_ONCE, now=now)
            except StorageError as error:
                self.out_of_reach = error
                return
            self.out_of_reach = None
            for file in files:
                self.until = max(self.until, min(file.at, now))
                self.taken.append(TakenFile(file.plan, self.until))
                rows += sum(file.plan.row_group_rows)
            self.took_all = self.arrivals.took_all
            if not files:
                break
        if self.took_all:
            self.until = max(self.until, now)


class JoinedArrivals:
    """Takes samples that have their label, see `Arrivals`.

    Args:
        samples, labels: what arrives; what they take has `key`.
        features: the columns of a sample with its label.
        make_join: gives a join that knows nothing.
        folder: for what waits and what is joined; what is in it is its own.
        most_remembered: samples beyond these are left in their stream.
    """

    def __init__(
        self,
        samples: Arrivals,
        labels: Arrivals,
        *,
        features: FeatureSpec,
        make_join: Callable[[], LabelJoin | TaskJoin],
        folder: Path,
        most_remembered: int,
    ) -> None:
        self._samples, self._labels = _Side(samples), _Side(labels)
        assert features.has_labels, "samples get a label"
        self._features = features
        self._make_join, self._join = make_join, make_join()
        self._joined = folder / "joined"
        self._log = JoinLog(folder / "log")
        self._rows = WaitingRows(
            folder / "rows", samples.features, lambda number: self._files[number].plan
        )
        self._files: dict[int, TakenFile] = {}
        self._most_remembered = most_remembered
        self._step = self._next_file = self._rows_since_saved = 0
        self._position: Position = {}
        self._is_finishing = False
        self._notes: list[str] = []
        self._said_full = self._said_unfit = False

    # As of `Arrivals` -------------------------------------------------------------------------

    @property
    def skipped(self) -> tuple[int, int]:
        """Files and rows of both streams that were left out since they began."""
        (files, rows), (label_files, label_rows) = (
            side.arrivals.skipped for side in (self._samples, self._labels)
        )
        return files + label_files, rows + label_rows

    @property
    def first_refused(self) -> list[str]:
        """Some of the files that were left out."""
        return self._samples.arrivals.first_refused + self._labels.arrivals.first_refused

    @property
    def took_all(self) -> bool:
        """Whether nothing else was there of both streams when they were last asked."""
        return self._samples.took_all and self._labels.took_all

    @property
    def waits(self) -> bool:
        """Whether samples that were taken wait for their labels."""
        return self._join.waiting > 0

    @property
    def position(self) -> Position:
        return self._position

    @property
    def figures(self) -> LabelFigures:
        """What waits, and what became of samples and labels."""
        return LabelFigures(
            counts=self._join.counts,
            counts_of=self._join.counts_of,
            waiting=self._join.waiting,
            remembered=self._join.num_remembered,
            lag=self._labels.arrivals.lag(),
        )

    def seek(self, position: Position) -> None:
        """Go on after a step.

        Raises:
            ValueError: it is no position.
            DataError: what was known then is not known any more.
        """
        try:
            step = int(position["step"])
            sides = [(self._samples, position["samples"]), (self._labels, position["labels"])]
            for side, each in sides:
                side.arrivals.seek(each["position"])
                side.arrivals.skipped = int(each["skipped"][0]), int(each["skipped"][1])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"this is no position in samples and labels: {error}") from error
        kept, steps = self._log.take_up(step)
        self._join = self._make_join()
        if kept.arrays:
            self._join.restore(kept.arrays)
        self._files, self._next_file = dict(kept.files), kept.next_file
        samples, labels = (side.arrivals.features for side in (self._samples, self._labels))
        for done in steps:
            keys = [keys_in(file.plan, samples) for file in done.samples]
            self._take_step(done, keys, [labels_in(file.plan, labels) for file in done.labels])
        self._rows.forget_from(self._next_file)
        for path in self._joined.glob("*.parquet"):
            if _step_of(path.name) > step:
                path.unlink()
        for side, until in (
            (self._samples, self._join.samples_until),
            (self._labels, self._join.labels_until),
        ):
            side.until, side.taken, side.took_all = until, [], False
        self._step, self._position = step, position

    def finish(self) -> None:
        """No samples are taken but those that have arrived by now."""
        self._is_finishing = True

    def take(self, *, most: int, now: float) -> list[NewFile]:
        """Return files of samples that have their label by now, perhaps none.

        Raises:
            StorageError: a source can't be asked for now.
            DataError: a file can't be used, with `fail`.
        """
        samples, labels, join = self._samples, self._labels, self._join
        samples.take(most=most, now=now, is_wanted=self._has_room)
        if self._is_finishing and samples.took_all:
            samples.is_over = True
        labels.take(most=most, now=now, is_wanted=lambda: labels.until < self._labels_wanted_until)
        keys, found = self._copied(), self._read()
        step = JoinStep(
            number=self._step + 1,
            first_file=self._next_file,
            samples=tuple(samples.taken),
            labels=tuple(labels.taken),
            samples_until=samples.until,
            labels_until=labels.until,
        )
        samples.taken, labels.taken = [], []
        before = join.counts
        joined = self._take_step(step, keys, found)
        made: list[NewFile] = []
        if step.samples or step.labels or joined.rows.size:
            made = self._write(joined, now)
            self._log.append(step)
            self._step = step.number
            self._position = self._position_now()
            self._save_sometimes(join.counts, before)
            self._note_unfit(join.counts)
        oldest = join.oldest_file
        self._forget_files(self._next_file if oldest is None else oldest)
        for side in (samples, labels):
            if side.out_of_reach is not None and not made:
                raise side.out_of_reach
        return made

    def take_notes(self) -> list[str]:
        """Return, once, what a person should know of."""
        notes, self._notes = self._notes, []
        return [
            *self._samples.arrivals.take_notes(),
            *(f"of labels: {text}" for text in self._labels.arrivals.take_notes()),
            *notes,
        ]

    def lag(self) -> Lag:
        """Return what waits in the stream of samples."""
        return self._samples.arrivals.lag()

    def is_in_cut(self, position: Position, oldest: str | None) -> None:
        """Hear how far a checkpoint is; see `Stream.is_in_cut`."""
        if not position:
            return
        first = position["oldest"] if oldest is None else _oldest_in(oldest)
        self._samples.arrivals.is_in_cut(position["samples"]["position"], first)
        self._labels.arrivals.is_in_cut(position["labels"]["position"], None)

    def remove(self, path: str) -> None:
        """Let go of a file of joined samples, and of what only came before it in both streams."""
        step = _step_of(Path(path).name)
        samples, labels = self._log.forgettable(step)
        for each in samples:
            self._samples.arrivals.remove(each)
        for each in labels:
            self._labels.arrivals.remove(each)
        if samples or labels:
            self._log.forget(step)
        Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        self._samples.arrivals.close()
        self._labels.arrivals.close()

    # Steps ------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        waiting = sum(sum(file.plan.row_group_rows) for file in self._samples.taken)
        has_room = self._join.num_remembered[0] + waiting < self._most_remembered
        if not has_room and not waiting and not self._said_full:
            self._said_full = True
            self._notes.append(
                f"{self._join.num_remembered[0]:,} samples are remembered for their labels, and"
                " data.label_stream.max_waiting allows no more: others stay in their stream until"
                " then"
            )
        return has_room

    def _note_unfit(self, counts: JoinCounts) -> None:
        """Say, once, that labels and samples have nothing in common: all would be negatives."""
        found = counts.joined + counts.late + counts.repeated
        if found or counts.orphans < _ORPHANS or self._said_unfit:
            return
        self._said_unfit = True
        self._notes.append(
            f"{counts.orphans:,} labels are of no sample, none has found one, and"
            f" {counts.expired:,} samples are negatives by now. Does data.label_stream.key"
            f" ({self._labels.arrivals.features.key}) hold the same in both streams, and is"
            " window_seconds long enough?"
        )

    @property
    def _labels_wanted_until(self) -> float:
        """Labels that arrived later are of no use now: they would only have to be remembered."""
        if self._join.num_remembered[0]:
            return self._join.labels_wanted_until
        taken = self._samples.taken
        return (taken[0].at if taken else self._samples.until) + self._join.reach_seconds

    def _copied(self) -> list[Keys]:
        """Have the rows of what was taken wait; return the keys of each file that can be used."""
        side, found = self._samples, list[Keys]()
        for file in list(side.taken):
            try:
                found.append(self._rows.add(self._next_file + len(found), file.plan))
            except UnreadableError as error:
                side.arrivals.refuse(file.plan.path, error)
                side.taken.remove(file)
        return found

    def _read(self) -> list[tuple[Keys, Labels]]:
        """Return the labels of what was taken, of each file that can be used."""
        side, found = self._labels, list[tuple[Keys, Labels]]()
        for file in list(side.taken):
            try:
                found.append(labels_in(file.plan, side.arrivals.features))
            except UnreadableError as error:
                side.arrivals.refuse(file.plan.path, error)
                side.taken.remove(file)
        return found

    def _take_step(
        self, step: JoinStep, keys: Sequence[Keys], labels: Sequence[tuple[Keys, Labels]]
    ) -> Joined:
        """Do a step, or do it again; return the samples that have their label by then."""
        parts = []
        for number, file in enumerate(step.samples, step.first_file):
            self._files[number] = file
            parts.append(self._join.add_samples(number, keys[number - step.first_file], file.at))
        for file, each in zip(step.labels, labels, strict=True):
            parts.append(self._join.add_labels(*each, file.at))
        parts.append(self._join.know_labels_until(step.labels_until))
        self._join.know_samples_until(step.samples_until)
        self._next_file = step.first_file + len(step.samples)
        return Joined.of(parts)

    def _write(self, joined: Joined, now: float) -> list[NewFile]:
        """Write samples with their labels into files: one, but where their columns differ."""
        tables: list[pa.Table] = []
        made: list[NewFile] = []
        ordered = joined.in_order()
        bounds = np.flatnonzero(np.diff(ordered.files, prepend=-1, append=-1))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            number = int(ordered.files[first])
            table = self._rows.take(number, ordered.rows[first:last])
            for name, labels in self._label_columns(ordered.labels[first:last]):
                table = table.append_column(name, labels)
            if tables and table.schema != tables[0].schema:
                made.append(self._write_file(tables, len(made), now))
                tables = []
            tables.append(table)
        if tables:
            made.append(self._write_file(tables, len(made), now))
        return made

    def _label_columns(self, labels: Labels) -> list[tuple[str, pa.Array]]:
        if self._features.label is not None:
            return [(self._features.label, pa.array(labels))]
        return [
            (task.column, pa.array(of_task, mask=of_task == MASKED))
            for task, of_task in zip(self._features.tasks, labels.T, strict=True)
        ]

    def _write_file(self, tables: Sequence[pa.Table], number: int, now: float) -> NewFile:
        oldest = self._files[min(self._files)].plan.path if self._files else ""
        table = pa.concat_tables(tables).replace_schema_metadata({_OLDEST: oldest})
        make_folder(self._joined)
        path = self._joined / f"{self._step + 1:012d}-{number}.parquet"
        with new_file(path) as sink:
            pq.write_table(
                table,
                sink,
                row_group_size=ROW_GROUP_ROWS,
                compression="lz4",
                use_dictionary=False,
                write_statistics=False,
            )
        return NewFile(plan_arrived(str(path), self._features, (), {}), now)

    def _position_now(self) -> Position:
        def of(side: _Side) -> dict[str, Any]:
            return {"position": side.arrivals.position, "skipped": list(side.arrivals.skipped)}

        oldest = self._join.oldest_file
        return {
            "step": self._step,
            "samples": of(self._samples),
            "labels": of(self._labels),
            "oldest": None if oldest is None else self._files[oldest].plan.path,
        }

    def _save_sometimes(self, counts: JoinCounts, before: JoinCounts) -> None:
        """Write down what is known once about as much was taken as there is to write."""
        taken = counts.samples + counts.labels - before.samples - before.labels
        self._rows_since_saved += taken
        least = max(LEAST_SAVED, SAVED_AGAIN * sum(self._join.num_remembered))
        if self._rows_since_saved >= least:
            kept = Kept(arrays=self._join.arrays(), files=self._needed(), next_file=self._next_file)
            self._log.save(self._step, kept)
            self._rows_since_saved = 0

    def _needed(self) -> dict[int, TakenFile]:
        """Return the files of which rows may be handed on."""
        oldest = self._join.oldest_file
        first = self._next_file if oldest is None else oldest
        return {number: file for number, file in self._files.items() if number >= first}

    def _forget_files(self, below: int) -> None:
        if self._files and next(iter(self._files)) < below:
            self._files = {n: file for n, file in self._files.items() if n >= below}
            self._rows.forget(below)


def first_position(samples: Position, labels: Position) -> Position:
    """Return where a join begins whose streams begin there."""
    return {
        "step": 0,
        "samples": {"position": samples, "skipped": [0, 0]},
        "labels": {"position": labels, "skipped": [0, 0]},
        "oldest": None,
    }


def _step_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no file of joined samples")
    return int(match[1])


def _oldest_in(path: str) -> str | None:
    """Return the first file of samples that waited when a file was made; None: it can't be read."""
    try:
        with open_source(path) as source:
            metadata = read_footer(source, path).metadata.metadata or {}
    except (OSError, ValueError, StorageError):
        return None
    return metadata.get(_OLDEST, b"").decode() or None
