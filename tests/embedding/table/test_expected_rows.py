"""A table that is told how many rows come holds what one does that grows for them."""

from dataclasses import astuple

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableEntries, TableSpec

SPEC = TableSpec(name="t", dim=19, track_usage=True)  # a line and a rest
ROWS = 5000


def some_rows() -> TableEntries:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**62), 2**62, ROWS)
    numbers = rng.integers(0, 100, (2, ROWS))
    vectors, slots = rng.normal(size=(2, ROWS, SPEC.dim)).astype(np.float32)
    return TableEntries(keys, *numbers, vectors, slots)


@pytest.mark.parametrize("expected", [0, 10, ROWS, 20 * ROWS])
def test_what_was_expected_changes_nothing_that_is_held(expected: int) -> None:
    grown, told = EmbeddingVariable(SPEC), EmbeddingVariable(SPEC)
    rows = some_rows()
    told.expect_rows(expected)

    for table in (grown, told):
        for start in range(0, ROWS, 700):
            table.import_rows(rows.take(np.arange(start, min(start + 700, ROWS))))
        table.remove(rows.keys[:1000])

    for ours, theirs in zip(astuple(grown.export()), astuple(told.export()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_index_for_all_rows_is_as_large_as_one_that_grew_for_them() -> None:
    grown, told = EmbeddingVariable(SPEC), EmbeddingVariable(SPEC)
    told.expect_rows(ROWS)

    grown.import_rows(some_rows())

    assert told.memory()["index"] == grown.memory()["index"]


def test_a_table_that_holds_rows_keeps_its_index() -> None:
    table = EmbeddingVariable(SPEC)
    table.import_rows(some_rows())
    before = table.memory()["index"]

    table.expect_rows(1_000_000)

    assert table.memory()["index"] == before
