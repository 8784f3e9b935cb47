"""Labels find their samples by key and time, however the two streams are read."""

from dataclasses import asdict, dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.label_join import JoinCounts, Joined, LabelJoin

WINDOW, LATE = 10.0, 5.0


@dataclass
class Streams:
    """Files of both streams: when each arrived, and its keys (and labels)."""

    samples: list[tuple[float, list[int]]] = field(default_factory=list)
    labels: list[tuple[float, list[tuple[int, int]]]] = field(default_factory=list)


@dataclass
class Outcome:
    """What each sample was trained with, in order, and what was counted."""

    trained: dict[tuple[int, int], list[int]]
    counts: JoinCounts


def expected(streams: Streams, *, again: bool) -> Outcome:
    """The definition, word for word."""
    labels = [(at, key, value) for at, file in streams.labels for key, value in file]
    counts = dict.fromkeys(asdict(JoinCounts()), 0)
    matched = [False] * len(labels)
    of_key: dict[int, list[int]] = {}
    for i, (_, key, _) in enumerate(labels):
        of_key.setdefault(key, []).append(i)
    trained: dict[tuple[int, int], list[int]] = {}
    for number, (came, keys) in enumerate(streams.samples):
        for row, key in enumerate(keys):
            counts["samples"] += 1
            near = [
                i
                for i in of_key.get(key, [])
                if came - WINDOW - LATE <= labels[i][0] < came + WINDOW + LATE
            ]
            in_time = [i for i in near if labels[i][0] < came + WINDOW]
            for i in near:
                matched[i] = True
            label = labels[in_time[0]][2] if in_time else 0
            counts["joined" if in_time else "expired"] += 1
            trained[number, row] = [0, 1] if again and label else [label]
            counts["again"] += again and label
            others = [labels[i][2] for i in near if i not in in_time[:1]]
            if label == 0 and 1 in others:
                counts["late"] += 1
                counts["repeated"] -= 1
                if again:
                    counts["again"] += 1
                    trained[number, row].append(1)
            counts["repeated"] += len(others)
    counts["labels"], counts["orphans"] = len(labels), matched.count(False)
    return Outcome(trained, JoinCounts(**counts))


def collect(joined: Joined, into: dict[tuple[int, int], list[int]]) -> None:
    for file, row, label in zip(
        joined.files.tolist(), joined.rows.tolist(), joined.labels.tolist(), strict=True
    ):
        into.setdefault((file, row), []).append(label)


def made(*, again: bool = False) -> LabelJoin:
    return LabelJoin(window_seconds=WINDOW, late_seconds=LATE, again=again)


def read(streams: Streams, turns: list[bool], *, again: bool, saves: bool) -> Outcome:
    """Read the streams, one file after another, the next of the labels where a turn says so."""
    join = made(again=again)
    trained: dict[tuple[int, int], list[int]] = {}
    samples, labels = list(enumerate(streams.samples)), list(streams.labels)
    turn = iter(turns)
    while samples or labels:
        if labels and (not samples or next(turn, True)):
            at, file = labels.pop(0)
            keys = np.array([key for key, _ in file], np.int64)
            values = np.array([value for _, value in file], np.uint8)
            collect(join.add_labels(keys, values, at), trained)
        else:
            number, (at, row_keys) = samples.pop(0)
            collect(join.add_samples(number, np.array(row_keys, np.int64), at), trained)
        if saves:
            another = made(again=again)
            another.restore(join.arrays())
            join = another
    collect(join.know_labels_until(1e9), trained)
    join.know_samples_until(1e9)
    assert join.num_remembered == (0, 0)
    assert join.oldest_file is None
    return Outcome(trained, join.counts)


times = st.lists(st.integers(0, 12), min_size=0, max_size=7).map(
    lambda pauses: [float(sum(pauses[: n + 1])) for n in range(len(pauses))]
)
few_keys = st.integers(0, 4)
many_keys = st.integers(-(2**63), 2**63 - 1)


@st.composite
def streams(draw: st.DrawFn) -> Streams:
    keys = draw(st.sampled_from([few_keys, st.sampled_from(draw(st.lists(many_keys, min_size=1)))]))
    samples = [(at, draw(st.lists(keys, max_size=6))) for at in draw(times)]
    label = st.tuples(keys, st.integers(0, 1))
    return Streams(samples, [(at, draw(st.lists(label, max_size=6))) for at in draw(times)])


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.booleans(), max_size=14), st.booleans(), st.booleans())
def test_what_becomes_of_a_sample_follows_from_arrivals_alone(
    both: Streams, turns: list[bool], again: bool, saves: bool
) -> None:
    found = read(both, turns, again=again, saves=saves)

    right = expected(both, again=again)
    assert found.trained == right.trained
    assert found.counts == right.counts


def keys_of(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.uint8)


def test_many_entries_come_and_go() -> None:
    """Rings wrap around and grow, keys come again, and the index stays right."""
    rng = np.random.default_rng(1)
    join, both = made(again=True), Streams()
    trained: dict[tuple[int, int], list[int]] = {}
    for second in range(120):
        size = int(rng.integers(0, 400))
        keys = rng.integers(0, 3000, size)
        both.samples.append((float(second), keys.tolist()))
        collect(join.add_samples(second, keys, float(second)), trained)
        keys, values = rng.integers(0, 3000, 50), rng.integers(0, 2, 50).astype(np.uint8)
        both.labels.append((second + 0.5, list(zip(keys.tolist(), values.tolist(), strict=True))))
        collect(join.add_labels(keys, values, second + 0.5), trained)
    collect(join.know_labels_until(1e9), trained)
    join.know_samples_until(1e9)

    right = expected(both, again=True)
    assert trained == right.trained
    assert join.counts == right.counts


def test_a_label_goes_to_all_samples_of_its_key() -> None:
    join = made()
    join.add_samples(0, np.full(1000, 7), 1.0)

    joined = join.add_labels(keys_of(7, 8), ones(2), 2.0)

    assert joined.rows.size == 1000
    assert joined.labels.all()


def test_samples_wait_while_it_is_not_known_which_labels_there_are() -> None:
    join = made()
    join.add_samples(0, keys_of(1, 2), 0.0)
    join.add_samples(1, keys_of(3), 100.0)

    assert join.counts.waiting == 3
    assert join.know_labels_until(9.99).rows.size == 0
    assert join.know_labels_until(10.0).rows.tolist() == [0, 1]
    assert join.counts.waiting == 1


def test_how_far_labels_are_of_use_follows_the_oldest_sample() -> None:
    join = made()
    join.add_samples(3, keys_of(1), 50.0)
    join.add_samples(4, keys_of(2), 60.0)

    assert join.labels_wanted_until == 50.0 + WINDOW + LATE
    assert join.oldest_file == 3
    join.know_labels_until(60.0)
    assert join.oldest_file == 4, "the first is remembered, and not handed on any more"
    join.know_labels_until(65.0)
    assert join.labels_wanted_until == 60.0 + WINDOW + LATE


def test_joined_samples_are_put_in_the_order_of_files_with_negatives_first() -> None:
    found = Joined(np.array([1, 0, 0]), np.array([0, 5, 5]), np.array([1, 0, 1], np.uint8))

    ordered = found.in_order()

    assert ordered.files.tolist() == [0, 0, 1]
    assert ordered.labels.tolist() == [0, 1, 1]


def test_what_comes_before_what_was_read_is_refused() -> None:
    join = made()
    join.add_samples(0, keys_of(1), 5.0)
    join.know_labels_until(5.0)

    with pytest.raises(ValueError, match="samples of 4"):
        join.add_samples(1, keys_of(1), 4.0)
    with pytest.raises(ValueError, match="labels of 4"):
        join.add_labels(keys_of(1), ones(1), 4.0)


def test_damaged_arrays_are_refused() -> None:
    arrays = made().arrays()
    del arrays["until"]

    with pytest.raises(ValueError, match="can't be read"):
        made().restore(arrays)
