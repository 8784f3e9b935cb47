from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worker.data.batch_size import keys_in_a_sample
from worker.data.planning import make_plan
from worker.spec import DataSpec, FeatureSpec, SparseFeature


def test_the_footer_tells_how_long_lists_are(tmp_path: Path) -> None:
    lists = [[1, 2, 3], [4], [], None, [5] * 16]
    table = pa.table(
        {
            "label": pa.array([0, 1, 0, 1, 0], pa.int8()),
            "one": [1, 2, None, 4, 5],
            "many": pa.array(lists, pa.list_(pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    sparse = (
        SparseFeature(name="one", column="one", table="one"),
        SparseFeature(name="many", column="many", table="many"),
        SparseFeature(name="short", column="many", table="many", max_length=3),
    )
    data = DataSpec(
        features=FeatureSpec(label="label", dense=(), dense_transform="none", sparse=sparse),
        batch_size=2,
    )

    found = keys_in_a_sample(make_plan([str(tmp_path / "a.parquet")], data), data.features)

    # An empty list is a value of the leaf too.
    assert found == pytest.approx([1.0, 22 / 5, 3.0])
