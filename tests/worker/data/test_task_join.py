"""Labels of several tasks find their samples, each by its own window, however streams are read."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.label_join import Joined, LabelJoin
from worker.data.task_join import MASKED, UNKNOWN, TaskJoin
from worker.spec import TaskLabel

TASKS = (
    TaskLabel(name="convert", column="buy", where="click"),
    TaskLabel(name="click", column="clicked"),
    TaskLabel(name="both", column="buy"),
)
WINDOWS, LATE = {"buy": 20.0, "clicked": 4.0}, 3.0

Rows = list[tuple[int, int, int]]  # key, label of buy, label of clicked
Told = dict[tuple[int, int], list[tuple[int, ...]]]


@dataclass
class Streams:
    """Files of both streams: when each arrived, and its rows."""

    samples: list[tuple[float, list[int]]]
    labels: list[tuple[float, Rows]]


def made(*, together: bool) -> TaskJoin:
    joins = [
        LabelJoin(window_seconds=window, late_seconds=LATE, again=False)
        for window in WINDOWS.values()
    ]
    return TaskJoin(joins, TASKS, together=together)


def expected(streams: Streams, came: float, key: int) -> tuple[int, ...]:
    """The definition: of each column the first label in time, and who is masked."""
    of_column = []
    for column, window in enumerate(WINDOWS.values()):
        near = [
            row[1 + column]
            for at, rows in streams.labels
            for row in rows
            if row[0] == key and row[1 + column] != UNKNOWN
            if came - window - LATE <= at < came + window
        ]
        of_column.append(near[0] if near else 0)
    buy, clicked = of_column
    return (buy if clicked else MASKED, clicked, buy)


def collect(joined: Joined, told: Told) -> None:
    assert joined.labels.shape == (joined.rows.size, len(TASKS))
    for file, row, labels in zip(joined.files, joined.rows, joined.labels, strict=True):
        told.setdefault((int(file), int(row)), []).append(tuple(labels.tolist()))


def read(streams: Streams, turns: list[bool], *, together: bool, saves: bool) -> Told:
    """Read the streams, one file after another, the next of the labels where a turn says so."""
    join = made(together=together)
    told: Told = {}
    samples, labels = list(enumerate(streams.samples)), list(streams.labels)
    turn = iter(turns)
    while samples or labels:
        if labels and (not samples or next(turn, True)):
            at, rows = labels.pop(0)
            columns = np.array(rows, np.int64).reshape(-1, 3)
            collect(join.add_labels(columns[:, 0], columns[:, 1:].astype(np.uint8), at), told)
        else:
            number, (at, keys) = samples.pop(0)
            collect(join.add_samples(number, np.array(keys, np.int64), at), told)
        if saves:
            other = made(together=together)
            other.restore(join.arrays())
            assert (other.waiting, other.counts) == (join.waiting, join.counts)
            join = other
    collect(join.know_labels_until(1e9), told)
    join.know_samples_until(1e9)
    assert join.num_remembered == (0, 0)
    assert (join.waiting, join.oldest_file) == (0, None)
    return told


times = st.lists(st.integers(0, 9), max_size=6).map(
    lambda pauses: [float(sum(pauses[: n + 1])) for n in range(len(pauses))]
)
few_keys, label = st.integers(0, 4), st.sampled_from([0, 1, 1, UNKNOWN])


@st.composite
def streams(draw: st.DrawFn) -> Streams:
    rows = st.lists(st.tuples(few_keys, label, label), max_size=6)
    samples = [(at, draw(st.lists(few_keys, max_size=6))) for at in draw(times)]
    return Streams(samples, [(at, draw(rows)) for at in draw(times)])


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.booleans(), max_size=12), st.booleans(), st.booleans())
def test_each_task_of_each_sample_is_handed_on_once_with_its_label(
    streams: Streams, turns: list[bool], together: bool, saves: bool
) -> None:
    told = read(streams, turns, together=together, saves=saves)

    for number, (came, keys) in enumerate(streams.samples):
        for row, key in enumerate(keys):
            parts = told.pop((number, row))
            if together:
                assert parts == [expected(streams, came, key)]
                continue
            assert all(any(each != MASKED for each in part) for part in parts)
            for task, wanted in enumerate(expected(streams, came, key)):
                said = [part[task] for part in parts if part[task] != MASKED]
                assert said == ([] if wanted == MASKED else [wanted])
    assert told == {}


def rows(joined: Joined) -> list[tuple[int, ...]]:
    return [
        (row, *labels)
        for row, labels in zip(joined.rows.tolist(), joined.labels.tolist(), strict=True)
    ]


def labelled(*rows_of: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(rows_of, np.int64)
    return columns[:, 0], columns[:, 1:].astype(np.uint8)


def test_apart_a_task_is_handed_on_as_soon_as_it_is_known_and_the_others_are_masked() -> None:
    join = made(together=False)
    join.add_samples(0, np.array([7, 8]), 0.0)

    assert rows(join.add_labels(*labelled((7, UNKNOWN, 1)), 1.0)) == [(0, MASKED, 1, MASKED)]
    assert rows(join.know_labels_until(4.0)) == [(1, MASKED, 0, MASKED)]
    assert join.waiting == 2, "of both nobody knows whether they are bought"
    assert rows(join.add_labels(*labelled((7, 1, UNKNOWN)), 5.0)) == [(0, 1, MASKED, 1)]
    assert rows(join.know_labels_until(20.0)) == [(1, MASKED, MASKED, 0)]
    assert join.waiting == 0


def test_together_a_sample_waits_for_all_tasks_but_those_that_are_masked() -> None:
    joins = [LabelJoin(window_seconds=w, late_seconds=LATE, again=False) for w in WINDOWS.values()]
    join = TaskJoin(joins, TASKS[:2], together=True)
    join.add_samples(0, np.array([7, 8]), 0.0)

    assert rows(join.add_labels(*labelled((7, UNKNOWN, 1)), 1.0)) == []
    assert rows(join.know_labels_until(4.0)) == [(1, MASKED, 0)]
    assert rows(join.know_labels_until(20.0)) == [(0, 0, 1)]
    assert join.oldest_file is None


def test_what_is_damaged_is_not_restored() -> None:
    join = made(together=True)
    join.add_samples(3, np.array([1, 2]), 0.0)
    arrays = join.arrays()

    for name in ("known", "told", "files", "0.sample_keys"):
        rest = {each: array for each, array in arrays.items() if each != name}
        with pytest.raises(ValueError, match="what waits for labels can't be read"):
            made(together=True).restore(rest)
        with pytest.raises(ValueError, match="what waits for labels can't be read"):
            made(together=True).restore({**arrays, name: arrays[name][:1][:0]})
