"""The join of samples with the labels of several tasks, which come in a stream of their own.

Each column of labels has a join of its own, with a window of its own (`LabelJoin`): what is known
of a column, and when, is what it would be alone. Here it is held together, sample by sample. A task
is *settled* once its column is known and the task that its `where` names is settled: it has a
label, or is masked. Tasks are handed on together, once all are settled, or apart, each as soon as
it is, with the others masked; each task of each sample once either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.label_join import JoinCounts, Joined, Keys, LabelJoin, Labels
from worker.data.labels import in_order
from worker.spec import TaskLabel

UNKNOWN, MASKED = 2, 3
"""What a label is beside 0 and 1: of a file of labels what it says nothing of, or of a sample what
is not known yet; and of a sample what does not count."""

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def columns_of(tasks: Sequence[TaskLabel]) -> tuple[str, ...]:
    """Return the distinct columns of tasks, in the order of their labels in the join."""
    return tuple(dict.fromkeys(task.column for task in tasks))


def joined_tasks(tasks: Sequence[TaskLabel]) -> tuple[TaskLabel, ...]:
    """Return where files of joined samples have the labels: a column of each task, null: masked."""
    return tuple(
        TaskLabel(name=task.name, column=f"synchromesh.label.{task.name}", missing="mask")
        for task in tasks
    )


@dataclass(slots=True)
class _Samples:
    """What is known of the samples of one file, of which some task is to be handed on.

    Args:
        known: uint8[rows, columns], 0, 1 or UNKNOWN.
        told: bool[rows, tasks], whether a task was handed on, or never will be.
        open: rows of which some task was not.
    """

    known: Labels
    told: _Bools
    open: int


class TaskJoin:
    """Joins samples with the labels of several tasks, see `LabelJoin`.

    Args:
        joins: of each column of `columns_of(tasks)`.
        tasks: in the order of the labels that are handed on.
        together: whether a sample is handed on once, when all of its tasks are settled.
    """

    def __init__(
        self, joins: Sequence[LabelJoin], tasks: Sequence[TaskLabel], *, together: bool
    ) -> None:
        self._columns = columns_of(tasks)
        self._joins = dict(zip(self._columns, joins, strict=True))
        self._together = together
        names = [task.name for task in tasks]
        self._order = [
            (
                at,
                self._columns.index(task.column),
                None if task.where is None else names.index(task.where),
            )
            for at, task in ((at, tasks[at]) for at in in_order(tasks))
        ]
        self._files: dict[int, _Samples] = {}
        self._num_samples = 0

    @property
    def counts(self) -> JoinCounts:
        """What became of samples and labels, the columns of labels added up; samples once."""
        each = self.counts_of.values()
        fields = ("labels", "joined", "expired", "again", "late", "repeated", "orphans")
        summed = {name: sum(getattr(counts, name) for counts in each) for name in fields}
        return JoinCounts(samples=self._num_samples, **summed)

    @property
    def counts_of(self) -> dict[str, JoinCounts]:
        """What became of samples and labels, by column of labels."""
        return {column: join.counts for column, join in self._joins.items()}

    @property
    def waiting(self) -> int:
        """Samples of which some task waits for its label."""
        return sum(samples.open for samples in self._files.values())

    @property
    def num_remembered(self) -> tuple[int, int]:
        """Samples that labels may come for, and labels that samples may come for."""
        each = [join.num_remembered for join in self._joins.values()]
        return max(samples for samples, _ in each), sum(labels for _, labels in each)

    @property
    def reach_seconds(self) -> float:
        """How far a label may be from its sample."""
        return max(join.reach_seconds for join in self._joins.values())

    @property
    def labels_until(self) -> float:
        """All labels are known that arrived before, seconds since 1970."""
        return self._any.labels_until

    @property
    def samples_until(self) -> float:
        """All samples are known that arrived before, seconds since 1970."""
        return self._any.samples_until

    @property
    def labels_wanted_until(self) -> float:
        """Labels that arrived later are of no use now: samples come before them."""
        return max(join.labels_wanted_until for join in self._joins.values())

    @property
    def oldest_file(self) -> int | None:
        """The first file of which samples may be handed on; None: there is none."""
        return min(self._files, default=None)

    def add_samples(self, file: int, keys: Keys, at: float) -> Joined:
        """Take the samples of a file, see `LabelJoin.add_samples`."""
        if keys.size:
            self._files[file] = _Samples(
                known=np.full((keys.size, len(self._columns)), UNKNOWN, np.uint8),
                told=np.zeros((keys.size, len(self._order)), np.bool_),
                open=keys.size,
            )
        self._num_samples += keys.size
        return self._settle([join.add_samples(file, keys, at) for join in self._joins.values()])

    def add_labels(self, keys: Keys, labels: Labels, at: float) -> Joined:
        """Take the labels of a file, see `LabelJoin.add_labels`.

        Args:
            labels: uint8[n, columns], 0, 1, or UNKNOWN where a row says nothing of a column.
        """
        parts = []
        for column, join in enumerate(self._joins.values()):
            said = labels[:, column] != UNKNOWN
            parts.append(join.add_labels(keys[said], labels[said, column], at))
        return self._settle(parts)

    def know_labels_until(self, at: float) -> Joined:
        """All labels are known that arrived before; return what is settled by that."""
        return self._settle([join.know_labels_until(at) for join in self._joins.values()])

    def know_samples_until(self, at: float) -> None:
        """All samples are known that arrived before."""
        for join in self._joins.values():
            join.know_samples_until(at)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that it knows."""
        numbers, files = list(self._files), list(self._files.values())
        found: dict[str, npt.NDArray[Any]] = {
            "files": np.array(numbers, np.int64),
            "rows": np.array([len(each.known) for each in files], np.int64),
            "known": np.concatenate([self._no_known, *(each.known for each in files)]),
            "told": np.concatenate([self._no_told, *(each.told for each in files)]),
            "num_samples": np.array(self._num_samples),
        }
        for column, join in enumerate(self._joins.values()):
            found |= {f"{column}.{name}": array for name, array in join.arrays().items()}
        return found

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Know what another one knew, as `arrays` had it; raises ValueError where it is damaged."""
        for column, join in enumerate(self._joins.values()):
            start = f"{column}."
            join.restore(
                {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}
            )
        try:
            numbers, rows = arrays["files"].tolist(), arrays["rows"].tolist()
            known, told = arrays["known"], arrays["told"]
            num_samples = int(arrays["num_samples"])
            shapes = (sum(rows), len(self._columns)), (sum(rows), len(self._order))
            if (known.shape, told.shape) != shapes or min(rows, default=1) < 1:
                raise ValueError(f"of {shapes} labels there are {(known.shape, told.shape)}")
            ends = np.cumsum(rows, dtype=np.int64)
            parts = zip(numbers, np.split(known, ends)[:-1], np.split(told, ends)[:-1], strict=True)
            files = {
                number: _Samples(its.copy(), its_told.copy(), int((~its_told.all(axis=1)).sum()))
                for number, its, its_told in parts
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"what waits for labels can't be read: {error}") from error
        self._files, self._num_samples = files, num_samples

    @property
    def _any(self) -> LabelJoin:
        return next(iter(self._joins.values()))

    @property
    def _no_known(self) -> Labels:
        return np.empty((0, len(self._columns)), np.uint8)

    @property
    def _no_told(self) -> _Bools:
        return np.empty((0, len(self._order)), np.bool_)

    def _settle(self, parts: Sequence[Joined]) -> Joined:
        """Take what each column's join has found; return the tasks that are settled by it."""
        touched: dict[int, list[_Ints]] = {}
        for column, joined in enumerate(parts):
            for file, rows, labels in _by_file(joined):
                if file in self._files:
                    self._files[file].known[rows, column] = labels
                    touched.setdefault(file, []).append(rows)
        none = Joined(np.empty(0, np.int64), np.empty(0, np.int64), self._nothing(0))
        found = [none]
        for file in sorted(touched):
            found.append(self._due(file, np.unique(np.concatenate(touched[file]))))
        return Joined.of(found)

    def _nothing(self, rows: int) -> Labels:
        return np.full((rows, len(self._order)), UNKNOWN, np.uint8)

    def _due(self, file: int, rows: _Ints) -> Joined:
        """Return what is to be handed on of some rows of a file, and hold that it was."""
        samples = self._files[file]
        labels = self._labels(samples.known[rows])
        before = samples.told[rows]
        settled = labels != UNKNOWN
        if self._together:
            settled &= settled.all(axis=1, keepdims=True)
        samples.told[rows] = before | settled
        samples.open -= int(((before | settled).all(axis=1) & ~before.all(axis=1)).sum())
        if samples.open == 0:
            del self._files[file]
        now = settled & ~before & (labels != MASKED)
        some = now.any(axis=1)
        told = np.where(now, labels, np.uint8(MASKED))[some]
        return Joined(np.full(len(told), file, np.int64), rows[some], told)

    def _labels(self, known: Labels) -> Labels:
        """Return what is known of the tasks, uint8[n, tasks], by what is known of the columns."""
        labels = self._nothing(len(known))
        for task, column, where in self._order:
            labels[:, task] = known[:, column]
            if where is not None:
                labels[labels[:, where] == UNKNOWN, task] = UNKNOWN
                labels[np.isin(labels[:, where], (0, MASKED)), task] = MASKED
        return labels


def _by_file(joined: Joined) -> list[tuple[int, _Ints, Labels]]:
    """Return what was joined of each file: its number, rows and labels."""
    if not joined.rows.size:
        return []
    order = np.argsort(joined.files, kind="stable")
    files, rows, labels = joined.files[order], joined.rows[order], joined.labels[order]
    starts = np.flatnonzero(np.diff(files, prepend=-1))
    ends = [*starts[1:].tolist(), files.size]
    return [
        (int(files[start]), rows[start:end], labels[start:end])
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]
