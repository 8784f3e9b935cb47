"""Types of columns are held against those that a model was trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.contract import ColumnKind, DataContract, check_contract, check_same_kinds
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.errors import DataError
from worker.spec import DataSpec, FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label=None,
    dense=(),
    dense_transform="none",
    sparse=(
        SparseFeature(name="user", column="u", table="user"),
        SparseFeature(name="t", column="t", table="t"),
    ),
)
Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def make(name: str, **columns: Any) -> Plan:
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"u": [1, 2], "t": [3, 4], **columns}), path)
        return make_plan([str(path)], DataSpec(features=FEATURES, batch_size=2))

    return make


def days(unit: str) -> pa.Array:
    return pa.array(np.array(["2024-01-01", "2024-01-02"], f"datetime64[{unit}]"))


def test_a_plan_knows_which_keys_its_columns_give_and_keeps_it(planned: Planned) -> None:
    plan = planned("a", u=pa.array([["x"], None]), t=days("us"))

    (file,) = plan.files
    kinds = (ColumnKind("u", "string", file.path), ColumnKind("t", "timestamp[us]", file.path))
    assert plan.kinds == kinds, "a list gives the keys of its values"
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("column", "values", "kinds"),
    [
        ("u", ["1", "2"], "got string, expected integer"),
        ("u", [["1"], ["2"]], "got string, expected integer"),
        ("t", days("ms"), "got timestamp.ms., expected integer"),
    ],
)
def test_data_of_other_keys_are_refused_by_column_types_and_both_files(
    planned: Planned, column: str, values: Any, kinds: str
) -> None:
    train, other = planned("train"), planned("other", **{column: values})

    place = f"other.parquet', column '{column}'"
    with pytest.raises(DataError, match=rf"{place}\): {kinds} as in '.*train.parquet'"):
        check_same_kinds(FEATURES, other.kinds, train.kinds)
    contract = DataContract(keys={"user": "integer", "t": "integer"})
    with pytest.raises(DataError, match=f"{kinds} as in full-7"):
        check_contract(FEATURES, other.kinds, contract, "full-7")


def test_units_of_time_are_told_apart(planned: Planned) -> None:
    train, other = planned("train", t=days("us")), planned("other", t=days("ms"))

    with pytest.raises(DataError, match=r"got timestamp\[ms\], expected timestamp\[us\]"):
        check_same_kinds(FEATURES, other.kinds, train.kinds)


@pytest.mark.parametrize(
    "values", [pa.array([1, 2], pa.int32()), [1.0, 2.0], [[1], [2]], pa.nulls(2), [True, False]]
)
def test_what_gives_the_same_keys_is_accepted(planned: Planned, values: Any) -> None:
    train, other = planned("train"), planned("other", u=values)

    check_same_kinds(FEATURES, other.kinds, train.kinds)
    check_same_kinds(FEATURES, train.kinds, other.kinds)


def test_a_checkpoint_that_says_nothing_is_read_with_a_warning(
    planned: Planned, caplog: pytest.LogCaptureFixture
) -> None:
    check_contract(FEATURES, planned("a").kinds, None, "full-7")

    assert "full-7 does not say which types its columns had" in caplog.text


def test_other_rules_of_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="rules of version 2, this software has version 1"):
        DataContract(rules=2, keys={})
