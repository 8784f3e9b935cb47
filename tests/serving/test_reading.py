"""Rows of all lookups in one call: the same as by pulls, whatever layer or rule has them."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from served_jobs import SavedModel

from serving import Model
from serving.loading import predictor_of
from serving.rows.quantized import RowsAs
from serving.rows.reading import RowReader
from worker.data.batch import Bags, Batch
from worker.data.shared import SharedBatch

NO_LABELS = np.empty(0, np.float32)


def opened(
    folder: Path, rows: RowsAs = "float32", name: str = "plain", **sections: object
) -> Model:
    """Open a model with an overlay, of which some keys were evicted."""
    job = SavedModel(name, folder / "run", **sections)
    job.train(4)
    job.cut()
    with Model.open(job.run, rows=rows):
        pass  # its base
    job.train(3, evict=True)
    job.cut()
    return Model.open(job.run, rows=rows)


def some_batch(rng: np.random.Generator, n: int, features: int = 3) -> Batch:
    keys = [rng.integers(-5, 40, n) for _ in range(features)]
    keys[1] = rng.zipf(1.3, n) % 5000
    dense = rng.exponential(size=(n, 2)).astype(np.float32)
    return Batch(NO_LABELS, dense, tuple(Bags(each) for each in keys))


@pytest.mark.parametrize("rows", get_args(RowsAs))
def test_rows_are_those_that_pulls_give(tmp_path: Path, rows: RowsAs) -> None:
    with opened(tmp_path, rows) as model:
        loaded = model.current
        lookups = model.saved.spec.lookups
        reader = RowReader.of(lookups, loaded.tables)
        assert reader is not None
        assert not loaded.form.is_base
        rng = np.random.default_rng(1)
        for n in (1, 7, 700):
            keys = [bags.keys for bags in some_batch(rng, n).sparse]
            out = np.full((n, model.saved.spec.pooled_width), np.nan, np.float32)
            starts = np.arange(len(keys) + 1) * n
            none = np.empty(0, np.int64)

            reader.read(np.concatenate(keys), starts, np.zeros(len(keys), np.int64), none, out)

            for lookup, asked in zip(lookups, keys, strict=True):
                expected = np.empty((n, lookup.dim), np.float32)
                table = loaded.tables[lookup.table]
                table.pull(asked, None, expected, np.empty(n, np.uint8))
                columns = slice(lookup.column, lookup.column + lookup.dim)
                np.testing.assert_array_equal(out[:, columns], expected)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
        {"type": "deepfm", "mlp": [8]},
        {"type": "wide_deep", "mlp": [8]},
    ],
    ids=lambda spec: spec["type"],
)
def test_predictions_are_the_same_bits_as_by_pulls(tmp_path: Path, spec: dict[str, object]) -> None:
    tables = {
        "a": {"value_dtype": "int8"},
        "tags": {"value_dtype": "bfloat16"},
        "b": {"admission": {"min_count": 2}},
    }
    with opened(tmp_path, model=spec, tables=tables, data={"sparse": ["a", "b", "tags"]}) as model:
        loaded = model.current
        by_calls, by_pulls = predictor_of(loaded), predictor_of(loaded)
        by_pulls._reader = None
        assert by_calls._reader is not None
        rng = np.random.default_rng(2)
        for n in (1, 5, 90):
            batch = some_batch(rng, n)
            np.testing.assert_array_equal(by_calls.logits(batch), by_pulls.logits(batch))
        # Runs of samples that share their first and last column.
        whole = some_batch(rng, 90)
        group = np.repeat(np.arange(9), 10)
        a, b, tags = whole.sparse
        bags = (Bags(a.keys[:9]), b, Bags(tags.keys[:9]))
        batch = Batch(NO_LABELS, whole.dense, bags)
        shared = SharedBatch(batch, group, (True, False, True), False)

        found = by_calls.logits(shared)

        np.testing.assert_array_equal(found, by_pulls.logits(shared))
        np.testing.assert_array_equal(found, by_calls.logits(shared.expanded()))


def test_compositions_are_read_by_pulls(tmp_path: Path) -> None:
    with opened(tmp_path, name="adaptive") as model:
        assert RowReader.of(model.saved.spec.lookups, model.current.tables) is None
