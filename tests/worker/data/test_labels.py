"""Labels of several tasks: which samples count in which, and what is refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from worker.data.column_types import check_schema
from worker.data.columns import Columns, columns_from_table, join
from worker.data.labels import in_order
from worker.errors import DataError
from worker.spec import FeatureSpec, TaskLabel

NAN = float("nan")
CLICK = TaskLabel(name="click", column="c")
BUY = TaskLabel(name="buy", column="b", where="click")


def labels(*tasks: TaskLabel, **columns: Any) -> np.ndarray:
    return decoded(*tasks, **columns).labels


def decoded(*tasks: TaskLabel, **columns: Any) -> Columns:
    features = FeatureSpec(label=None, dense=(), dense_transform="none", sparse=(), tasks=tasks)
    table = pa.table(columns)
    check_schema(table.schema, features, "f")
    return columns_from_table(table, features, where=("f", 3))


def test_a_task_counts_where_the_label_that_it_names_is_1() -> None:
    found = labels(BUY, CLICK, b=[0, 1, 1, 0], c=[0.0, 0.0, 1.0, 1.0])

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[NAN, 0], [NAN, 0], [1, 1], [0, 1]])


def test_what_a_masked_label_is_does_not_matter_and_masks_the_next() -> None:
    tasks = (CLICK, BUY, TaskLabel(name="again", column="a", where="buy"))

    found = labels(*tasks, c=[0, 1, 1], b=[None, 1, 0], a=[None, 0, None])

    np.testing.assert_array_equal(found, [[0, NAN, NAN], [1, 1, 0], [1, 0, NAN]])


def test_a_null_is_masked_where_the_job_says_so_and_masks_who_names_it() -> None:
    tasks = (TaskLabel(name="click", column="c", missing="mask"), BUY)

    found = labels(*tasks, c=[None, 1], b=[1, 1])

    np.testing.assert_array_equal(found, [[NAN, NAN], [1, 1]])


@pytest.mark.parametrize(
    ("columns", "column", "row", "got"),
    [
        ({"c": [1, None], "b": [1, 1]}, "c", 1, "null"),
        ({"c": [1, 1], "b": [1, None]}, "b", 1, "null"),
        ({"c": [0, 0], "b": [1, 2]}, "b", 1, "2"),
    ],
    ids=["null", "null where it counts", "neither 0 nor 1, though masked"],
)
def test_other_labels_are_refused_by_column_and_row(
    columns: dict[str, Any], column: str, row: int, got: str
) -> None:
    with pytest.raises(DataError, match=f"got {got}, expected 0 or 1") as caught:
        labels(CLICK, BUY, **columns)

    assert (caught.value.file, caught.value.column, caught.value.row) == ("f", column, row)


def test_tasks_may_share_a_column_and_rows_can_be_taken_and_joined() -> None:
    both = TaskLabel(name="both", column="b")
    parts = [decoded(BUY, CLICK, both, b=[0, 1], c=[0, 1]) for _ in range(2)]

    whole = join(parts, np.array([3, 0]))

    np.testing.assert_array_equal(whole.labels, [[1, 1, 1], [NAN, 0, 0]])
    np.testing.assert_array_equal(whole.batch(1, 2).labels, [[NAN, 0, 0]])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (("x", None), "data.labels.a.where must name another task, one of b, got 'x'"),
        (("a", None), "data.labels.a.where must name another task"),
        (("b", "a"), "where of a, b name one another in a circle"),
    ],
)
def test_a_task_names_another_one_and_never_in_a_circle(
    where: tuple[str | None, str | None], message: str
) -> None:
    tasks = [TaskLabel(name=n, column="c", where=w) for n, w in zip("ab", where, strict=True)]

    with pytest.raises(ValueError, match=message):
        in_order(tasks)


def test_a_column_that_is_missing_or_no_number_is_refused_as_a_label() -> None:
    with pytest.raises(DataError, match="a label has an unusable type"):
        labels(CLICK, BUY, c=[1], b=["x"])
    with pytest.raises(DataError, match="the file lacks a column"):
        labels(CLICK, BUY, c=[1])


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (
            {"label": None, "tasks": (CLICK, TaskLabel(name="buy", column="bougt", where="click"))},
            "no such name, but 'bought'. Correct data.labels.buy, or leave the file out",
        ),
        (
            {
                "label": None,
                "tasks": tuple(TaskLabel(name=name, column="clic") for name in ("one", "two")),
            },
            "but 'click' or 'clicks'. Correct data.labels.one and data.labels.two, or leave",
        ),
        ({"label": "lable"}, "no such name. Correct data.label, or leave the file out"),
        ({"label": "bougt", "key": "id"}, "but 'bought'. Correct data.label_stream.label, or"),
    ],
)
def test_a_label_column_that_is_missing_is_told_with_the_key_and_columns_that_are_near(
    features: dict[str, Any], said: str
) -> None:
    numbers = {name: pa.int8() for name in ("c", "bought", "click", "clicks", "id")}
    schema = pa.schema({**numbers, "bougth": pa.string()})  # near, and no number
    spec = FeatureSpec(dense=(), dense_transform="none", sparse=(), **features)

    with pytest.raises(DataError) as caught:
        check_schema(schema, spec, "f.parquet")

    assert said in str(caught.value)
