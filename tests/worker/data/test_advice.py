from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.advice import advice, shared_files
from worker.data.planning import make_plan
from worker.spec import DataSpec, FeatureSpec, SparseFeature


def told(path: Path, table: pa.Table, pad: Any = None, **options: Any) -> list[str]:
    pq.write_table(table, path, **options)
    feature = SparseFeature(name="x", column="x", table="t", pad=pad)
    features = FeatureSpec(label=None, dense=(), dense_transform="none", sparse=(feature,))
    plan = make_plan([str(path)], DataSpec(features=features, batch_size=16))
    return advice(plan, features)


def filled(pad: Any, kind: pa.DataType, front: bool = False) -> pa.Table:
    rng = np.random.default_rng(1)
    lists = []
    for _ in range(200):
        ids = [kind_of(pad)(n) for n in rng.integers(1, 50, rng.integers(0, 6))]
        padding = [pad] * (5 - len(ids))
        lists.append(padding + ids if front else ids + padding)
    return pa.table({"x": pa.array(lists, kind)})


def kind_of(value: Any) -> type:
    return str if isinstance(value, str) else int


@pytest.mark.parametrize("front", [False, True], ids=["at the end", "at the beginning"])
@pytest.mark.parametrize(
    ("pad", "kind", "remedy"),
    [
        (0, pa.list_(pa.int64(), 5), "pad: 0 "),
        (-1, pa.list_(pa.int32()), "pad: -1 "),
        ("", pa.large_list(pa.string()), 'pad: "" '),
    ],
)
def test_lists_that_are_filled_up_to_one_length_are_told_with_their_padding(
    tmp_path: Path, front: bool, pad: Any, kind: pa.DataType, remedy: str
) -> None:
    path = tmp_path / "a.parquet"

    (warning,) = told(path, filled(pad, kind, front))

    assert "column 'x' has lists of one length, 5" in warning
    assert remedy in warning
    assert str(path) in warning
    assert told(path, filled(pad, kind, front), pad=pad) == []


@pytest.mark.parametrize(
    "lists",
    [
        [[n % 7, n % 5, n % 3, n % 2, n % 2] for n in range(200)],
        [[0] * (n % 5) for n in range(200)],
        [[n, 1, 1] for n in range(200)],
        [[1, n, n + 1] for n in range(200)],
        [None, []],
        [list(range(n % 4)) for n in range(200)],
    ],
    ids=["few values", "true lengths", "constant end", "one at the front", "empty", "ragged"],
)
def test_other_lists_give_no_warning(tmp_path: Path, lists: Any) -> None:
    table = pa.table({"x": pa.array(lists, pa.list_(pa.int64()))})

    assert told(tmp_path / "a.parquet", table) == []


def test_single_values_give_no_warning(tmp_path: Path) -> None:
    assert told(tmp_path / "a.parquet", pa.table({"x": [0, 0, 1, 0]})) == []


def test_small_row_groups_are_told_with_the_remedy(tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"x": list(range(4000))})

    (warning,) = told(path, table, row_group_size=10)

    assert "400 row groups of 10 rows on average" in warning
    assert "row_group_size=65536" in warning
    assert str(path) in warning
    assert told(path, table, row_group_size=400) == []  # ten of them cost nothing
    wide = pa.table({"x": np.arange(100_000)})
    assert told(path, wide, row_group_size=5000) == []


def test_files_that_are_trained_on_and_evaluated_are_told(tmp_path: Path) -> None:
    for name in ("day1", "day2", "day3"):
        pq.write_table(pa.table({"x": [1]}), tmp_path / f"{name}.parquet")
    (tmp_path / "link").symlink_to(tmp_path)
    feature = SparseFeature(name="x", column="x", table="t")
    features = FeatureSpec(label=None, dense=(), dense_transform="none", sparse=(feature,))
    data = DataSpec(features=features, batch_size=16)
    training = make_plan([f"{tmp_path}/day[12].parquet"], data)

    def said_of(pattern: str) -> list[str]:
        return shared_files(training, make_plan([str(tmp_path / pattern)], data))

    (said,) = said_of("link/day[23].parquet")
    assert said.startswith("1 of the 2 files of data.eval are trained on too (")
    assert "link/day2.parquet" in said
    assert said_of("day3.parquet") == []
