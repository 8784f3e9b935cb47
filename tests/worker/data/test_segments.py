"""Segments: values of a column as a bounded number of names."""

import numpy as np
import pyarrow as pa
import pytest

from worker.data.segments import MOST_NAMED, OTHER, Segments, joined, segments_of


def values(segments: Segments) -> list[str | None]:
    return [None if i == OTHER else segments.names[i] for i in segments.of.tolist()]


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array([7, -1, None, 7]), ["7", "-1", "null", "7"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([True, None, False]), ["true", "null", "false"]),
        (pa.array(["de", "", "de", None]), ["de", "", "de", "null"]),
        (pa.array(["de", "at", "de"]).dictionary_encode(), ["de", "at", "de"]),
        (pa.array(["de", "at"], pa.string_view()), ["de", "at"]),
        (pa.array([None, None]), ["null", "null"]),
        (pa.array([], pa.string()), []),
        (pa.array(["x" * 99]), ["x" * 60]),
    ],
)
def test_a_sample_is_in_the_segment_of_its_value(array: pa.Array, texts: list[str]) -> None:
    assert values(segments_of(array)) == texts


def test_the_values_that_are_most_often_there_have_names() -> None:
    rare = [f"rare {i}" for i in range(300)]

    found = segments_of(pa.array([*rare, "often", "often"]))

    assert len(found.names) == MOST_NAMED
    assert values(found)[-2:] == ["often", "often"]
    assert values(found)[:254] == rare[:254]
    assert values(found)[254:300] == [None] * 46


def test_segments_go_with_their_samples() -> None:
    one = segments_of(pa.array(["a", "b", "c"]))
    other = segments_of(pa.array(["b", "d"]))
    same = Segments(one.names, one.of[::-1])

    assert values(joined([one, other])) == ["a", "b", "c", "b", "d"]
    assert values(joined([one, same])) == ["a", "b", "c", "c", "b", "a"]
    assert values(one.rows(slice(1, 3))) == ["b", "c"]
    assert values(one.rows(np.array([2, 0]))) == ["c", "a"]
    part = joined([one, other]).rows(slice(2, 4)).in_use()
    assert (set(part.names), values(part)) == ({"b", "c"}, ["c", "b"])


def test_those_without_a_name_have_none_when_joined() -> None:
    crowded = segments_of(pa.array(range(400)))
    few = segments_of(pa.array([0, 399]))

    found = joined([crowded, few])

    expected = [value if value in found.names else None for value in map(str, [*range(255)])]
    assert values(found)[:255] == expected
    assert values(found)[255:399] == [None] * 144
    assert values(found)[-2:] == ["0", None if "399" not in found.names else "399"]
    assert len(found.names) == MOST_NAMED
