"""Lists of the most usual kind are read as by the rules of training, and others by these alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.requests import RequestSchema
from worker.data.batch import SingleKeys
from worker.data.shared import SharedBatch
from worker.spec import FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label=None,
    dense=("d1", "d2", "d3"),
    dense_transform="log1p",
    sparse=tuple(
        SparseFeature(name=name, column=column, table=name)
        for name, column in (("a", "a"), ("b", "b"), ("again", "a"))
    ),
)


def schemas() -> tuple[RequestSchema, RequestSchema]:
    """One that reads what is usual fast, and one that reads nothing so."""
    fast, by_rules = (RequestSchema(FEATURES, None, max_rows=50) for _ in range(2))
    by_rules.usual = None
    return fast, by_rules


def some_columns(n: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(n)
    return {
        "d1": rng.exponential(100, n).tolist(),
        "d2": rng.integers(-(1 << 50), 1 << 50, n).tolist(),
        "d3": [3, *rng.exponential(size=n - 1).tolist()],
        "a": rng.integers(-(1 << 63), (1 << 63) - 1, n).tolist(),
        "b": rng.integers(0, 5, n).tolist(),
    }


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, SharedBatch):
        assert (found.sparse, found.dense) == (expected.sparse, expected.dense)
        np.testing.assert_array_equal(found.group, expected.group)
        found, expected = found.batch, expected.batch
    found = found.batch() if isinstance(found, SingleKeys) else found
    np.testing.assert_array_equal(found.dense, expected.dense)
    assert found.dense.dtype == np.float32
    for ours, theirs in zip(found.sparse, expected.sparse, strict=True):
        np.testing.assert_array_equal(ours.keys, theirs.keys)


@pytest.mark.parametrize("n", [1, 2, 31])
@pytest.mark.parametrize("shared", [(), ("a",), ("d1", "d3"), ("d1", "d2", "d3", "b")])
def test_rows_and_columns_give_the_samples_that_the_rules_give(
    n: int, shared: tuple[str, ...]
) -> None:
    fast, by_rules = schemas()
    columns = some_columns(n)
    context = {name: columns[name][0] for name in shared}
    own = {name: values for name, values in columns.items() if name not in shared}
    rows = [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
    expected = by_rules.batch_of_rows(rows, context)

    same(fast.batch_of_rows(rows, context), expected)
    given = {name: [value] for name, value in context.items()}
    assert fast.usual is not None
    found = fast.usual.of_lists(own, given)
    assert found is not None
    same(found, expected)
    same(fast.batch_of_columns(own, given), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns["a"].__setitem__(0, None),
        lambda columns: columns["a"].__setitem__(0, True),
        lambda columns: columns["a"].__setitem__(0, 1.0),
        lambda columns: columns["a"].__setitem__(0, "1"),
        lambda columns: columns["a"].__setitem__(0, [1]),
        lambda columns: columns["a"].__setitem__(0, 1 << 63),
        lambda columns: columns["d1"].__setitem__(0, None),
        lambda columns: columns["d1"].__setitem__(0, True),
        lambda columns: columns["d1"].__setitem__(0, float("nan")),
        lambda columns: columns["d1"].__setitem__(0, float("inf")),
        lambda columns: columns["d2"].__setitem__(0, (1 << 60) + 1),
        lambda columns: columns["d2"].__setitem__(0, 1 << 2000),
        lambda columns: columns["d2"].pop(),
        lambda columns: columns.pop("d2"),
        lambda columns: columns.update(d4=columns.pop("d2")),
        lambda columns: columns.update(d2="abc"),
        lambda columns: columns.update(d1=7),
    ],
)
def test_what_is_not_usual_is_left_to_the_rules(
    change: Callable[[dict[str, Any]], object],
) -> None:
    fast, _ = schemas()
    columns = some_columns(3)
    assert fast.usual is not None
    assert fast.usual.of_lists(columns, {}) is not None
    change(columns)

    assert fast.usual.of_lists(columns, {}) is None


def test_columns_with_rules_of_their_own_are_never_usual() -> None:
    padded = SparseFeature(name="a", column="a", table="a", pad=0)
    features = FeatureSpec(label=None, dense=(), dense_transform="none", sparse=(padded,))
    assert RequestSchema(features, None, max_rows=9).usual is None
