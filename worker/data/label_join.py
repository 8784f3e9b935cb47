"""The join of samples with labels that come in a stream of their own: a plain state machine.

Of a sample that arrived at s and a label of the same key that arrived at l:

* s - window - late <= l < s + window: the label is in time. The first of these is what the sample
  is trained with. One that has none is a negative, once all labels until s + window are known.
* s + window <= l < s + window + late: it is too late for that. As any further label of the sample
  it says what is known, or, where it is positive and the sample was trained as a negative, is
  *late*.
* else they have nothing to do with each other. A label that is of no sample is an *orphan*.

Where the loss wants each positive to have been a negative before (fake negative weighting), a
sample with a positive label is handed on twice: as a negative, and once more as a positive.

So what becomes of a sample follows from when samples and labels arrived, and from nothing else: not
from how they were read, as long as each stream is read in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.label_kernels import (
    AGAIN,
    EXPIRED,
    JOINED,
    LATE,
    ORPHANS,
    REPEATED,
    Entries,
    Out,
    add_labels,
    add_samples,
    expire,
    forget_labels,
    forget_samples,
    index_all,
)

_LEAST = 1024
_ROW_BITS = 32

Keys = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Joined:
    """Samples that have their label.

    Args:
        files, rows: int64[n], where they are; one may be there twice, as a negative before it is a
            positive.
        labels: uint8[n], 0 or 1; of several tasks uint8[n, tasks], see `TaskJoin`.
    """

    files: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    labels: Labels

    @staticmethod
    def of(parts: Sequence["Joined"]) -> "Joined":
        """Join parts, at least one, in their order."""
        columns = ("files", "rows", "labels")
        return Joined(*(np.concatenate([getattr(each, c) for each in parts]) for c in columns))

    def in_order(self) -> "Joined":
        """Return the same in the order of files and rows."""
        order = np.argsort((self.files << _ROW_BITS) | self.rows, kind="stable")
        return Joined(self.files[order], self.rows[order], self.labels[order])


@dataclass(frozen=True, slots=True)
class JoinCounts:
    """What became of samples and labels since the streams began.

    Args:
        samples, labels: that were taken.
        joined: samples with a label that was in time.
        expired: samples without one.
        again: samples that were handed on once more, as positives.
        late: positive labels of samples that were trained as negatives.
        repeated: labels of samples that were trained already, and as they say.
        orphans: labels of no sample.
    """

    samples: int = 0
    labels: int = 0
    joined: int = 0
    expired: int = 0
    again: int = 0
    late: int = 0
    repeated: int = 0
    orphans: int = 0

    @property
    def waiting(self) -> int:
        """Samples that wait for their label."""
        return self.samples - self.joined - self.expired


class _Ring:
    """Entries in the order in which they came, found by key; grows by doubling."""

    def __init__(self) -> None:
        self.tail = self.head = 0
        self.entries = _of_size(_LEAST)

    def __len__(self) -> int:
        return self.head - self.tail

    def reserve(self, more: int) -> None:
        """Have room for so many more entries."""
        size = self.entries.keys.size
        if len(self) + more <= size:
            return
        while size < len(self) + more:
            size *= 2
        entries = _of_size(size)
        at = np.arange(self.tail, self.head)
        for name in ("keys", "at", "places", "states"):
            old = getattr(self.entries, name)
            getattr(entries, name)[at & (size - 1)] = old[at & (old.size - 1)]
        self.entries = entries
        index_all(entries, self.tail, self.head)

    def columns(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return what is there, in order."""
        at = np.arange(self.tail, self.head) & (self.entries.keys.size - 1)
        parts = ("keys", "at", "places", "states")
        return {f"{name}_{part}": getattr(self.entries, part)[at] for part in parts}

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]], name: str) -> "_Ring":
        ring = cls()
        size = columns[f"{name}_keys"].size
        ring.reserve(size)
        for part in ("keys", "at", "places", "states"):
            getattr(ring.entries, part)[:size] = columns[f"{name}_{part}"]
        ring.head = size
        index_all(ring.entries, 0, size)
        return ring


class LabelJoin:
    """Joins two streams by key. Memory is 50 to 100 bytes for each entry that it has.

    Args:
        window_seconds: for how long a sample waits for its label.
        late_seconds: for how long after that it is remembered. Labels that come before their
            samples are remembered for both.
        again: whether a positive is handed on as a negative first.
    """

    def __init__(self, *, window_seconds: float, late_seconds: float, again: bool) -> None:
        self._window = float(window_seconds)
        self._late = float(late_seconds)
        self._again = again
        self._samples, self._labels = _Ring(), _Ring()
        self._due = 0  # the first sample whose window may not be over
        self._labels_until = self._samples_until = 0.0
        self._counts = np.zeros(6, np.int64)
        self._num_samples = self._num_labels = 0

    @property
    def counts(self) -> JoinCounts:
        counts = self._counts.tolist()
        return JoinCounts(
            samples=self._num_samples,
            labels=self._num_labels,
            joined=counts[JOINED],
            expired=counts[EXPIRED],
            again=counts[AGAIN],
            late=counts[LATE],
            repeated=counts[REPEATED],
            orphans=counts[ORPHANS],
        )

    @property
    def counts_of(self) -> dict[str, JoinCounts]:
        """By column of labels, where there are several: there is one."""
        return {}

    @property
    def waiting(self) -> int:
        """Samples that wait for their label."""
        return self.counts.waiting

    @property
    def num_remembered(self) -> tuple[int, int]:
        """Samples that labels may come for, and labels that samples may come for."""
        return len(self._samples), len(self._labels)

    @property
    def reach_seconds(self) -> float:
        """How far a label may be from its sample."""
        return self._window + self._late

    @property
    def labels_until(self) -> float:
        """All labels are known that arrived before, seconds since 1970."""
        return float(self._labels_until)

    @property
    def samples_until(self) -> float:
        """All samples are known that arrived before, seconds since 1970."""
        return float(self._samples_until)

    @property
    def labels_wanted_until(self) -> float:
        """Labels that arrived later are of no use now: samples come before them."""
        oldest = self._samples_until
        if len(self._samples):
            entries = self._samples.entries
            oldest = entries.at[self._samples.tail & (entries.keys.size - 1)]
        return float(oldest) + self._window + self._late

    @property
    def oldest_file(self) -> int | None:
        """The first file of which samples may be handed on; None: there is none."""
        first = self._samples.tail if self._again else self._due
        if first == self._samples.head:
            return None
        entries = self._samples.entries
        return int(entries.places[first & (entries.keys.size - 1)] >> _ROW_BITS)

    def add_samples(self, file: int, keys: Keys, at: float) -> Joined:
        """Take the samples of a file.

        Args:
            file: its number, higher than those before.
            keys: int64[n], of its rows.
            at: when it arrived, not before another one did.

        Returns:
            Those that have their label already.
        """
        if at < self._samples_until:
            raise ValueError(f"samples of {at} come after those of {self._samples_until}")
        self.know_samples_until(at)
        out = _out(2 * keys.size)
        samples, labels = self._samples, self._labels
        samples.reserve(keys.size)
        add_samples(
            samples.entries, samples.head, labels.entries, labels.tail, keys, file << _ROW_BITS,
            float(at), self._window, self._late, self._labels_until, self._again, out,
            self._counts,
        )  # fmt: skip
        samples.head += keys.size
        self._num_samples += keys.size
        return _joined([out])

    def add_labels(self, keys: Keys, labels: Labels, at: float) -> Joined:
        """Take the labels of a file, 0 or 1; return the samples that have theirs by now.

        Args:
            at: when it arrived, not before another one did.
        """
        if at < self._labels_until:
            raise ValueError(f"labels of {at} come after those of {self._labels_until}")
        parts = [self._expire(at)]
        ring = self._labels
        ring.reserve(keys.size)
        done, room = 0, 2 * keys.size + 16
        while done < keys.size:
            out = _out(room)
            added = add_labels(
                self._samples.entries, self._samples.tail, ring.entries, ring.head, keys, labels,
                float(at), self._window, self._late, self._again, done, out, self._counts,
            )  # fmt: skip
            ring.head += added - done
            if added == done:
                room *= 2  # so many samples have one key
            done = added
            parts.append(out)
        self._num_labels += keys.size
        return _joined(parts)

    def know_labels_until(self, at: float) -> Joined:
        """All labels are known that arrived before; return the samples that have none."""
        return _joined([self._expire(at)])

    def know_samples_until(self, at: float) -> None:
        """All samples are known that arrived before."""
        self._samples_until = max(self._samples_until, at)
        ring = self._labels
        ring.tail = forget_labels(
            ring.entries, ring.tail, ring.head, self._samples_until, self._window, self._late,
            self._counts,
        )  # fmt: skip

    def _expire(self, at: float) -> Out:
        self._labels_until = max(self._labels_until, at)
        ring = self._samples
        out = _out(self.counts.waiting)
        self._due = expire(
            ring.entries, self._due, ring.head, self._labels_until, self._window, out, self._counts
        )
        ring.tail = forget_samples(
            ring.entries, ring.tail, self._due, self._labels_until, self._window, self._late
        )
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that it knows."""
        until = np.array([self._samples_until, self._labels_until])
        taken = np.array([self._num_samples, self._num_labels, self._due - self._samples.tail])
        return {
            **self._samples.columns("sample"),
            **self._labels.columns("label"),
            "until": until,
            "taken": taken,
            "counts": self._counts,
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Know what another one knew, as `arrays` had it; raises ValueError where it is damaged."""
        try:
            samples, labels = _Ring.of(arrays, "sample"), _Ring.of(arrays, "label")
            samples_until, labels_until = arrays["until"].tolist()
            num_samples, num_labels, due = arrays["taken"].tolist()
            counts = arrays["counts"].astype(np.int64).reshape(6)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"what waits for labels can't be read: {error}") from error
        self._samples, self._labels, self._due = samples, labels, due
        self._samples_until, self._labels_until = samples_until, labels_until
        self._num_samples, self._num_labels, self._counts = num_samples, num_labels, counts.copy()


def _of_size(size: int) -> Entries:
    return Entries(
        keys=np.zeros(size, np.int64),
        at=np.zeros(size, np.float64),
        before=np.zeros(size, np.int64),
        places=np.zeros(size, np.int64),
        states=np.zeros(size, np.uint8),
        slots=np.zeros(2 * size, np.int64),
    )


def _out(size: int) -> Out:
    return Out(np.empty(size, np.int64), np.empty(size, np.uint8), np.zeros(1, np.int64))


def _joined(parts: list[Out]) -> Joined:
    places = np.concatenate([part.places[: part.size[0]] for part in parts])
    labels = np.concatenate([part.labels[: part.size[0]] for part in parts])
    return Joined(places >> _ROW_BITS, places & (2**_ROW_BITS - 1), labels)
