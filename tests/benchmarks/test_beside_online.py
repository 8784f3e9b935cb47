"""One pass beside other learners: the same rows in the same order, and lines of what is there."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from beside_online import DENSE, SPARSE, log_loss, main, others, read

from bench import other_learners
from bench.drifting import drifting
from bench.other_learners import RIVER, VOWPAL_WABBIT, Samples
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.metrics import exact_auc


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_criteo_like(tmp_path / "data", CriteoLike(rows=300, files=2))
    return tmp_path / "data"


def test_rows_come_in_their_order_train_first(data: Path) -> None:
    whole, some = read(data, 10_000), read(data, 100)

    assert whole.num_rows > 300
    assert some.equals(whole.slice(0, 100))
    assert read(data / "train", 10_000).equals(
        whole.slice(0, read(data / "train", 10_000).num_rows)
    )


def test_dense_values_are_those_of_our_jobs() -> None:
    table = pa.table({"label": [1, 0], "I1": [None, 3.0], "I2": [-2.0, 0.0], "C1": [5, -1]})

    samples = Samples.of(table, dense=["I1", "I2"], sparse=["C1"])

    np.testing.assert_allclose(samples.dense, [[0, 0], [np.log(4), 0]], rtol=1e-6)
    assert samples.ids.tolist() == [[5], [-1]]


def test_what_is_not_installed_is_said(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(other_learners, "_module", lambda name: None)

    others(read(data, 50))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["model"] for line in lines] == [*VOWPAL_WABBIT, *RIVER]
    assert {(line["value"], line["missing"]) for line in lines} == {(None, "it is not installed")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pass_of_our_jobs_is_printed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {*DENSE, *SPARSE} <= set(read(data, 1).column_names)

    assert main(["--data", str(data), "--rows", "300"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = [line for line in lines if line["name"] == "progressive_auc.synchromesh"]
    assert [line["samples"] for line in ours] == [300] * 3


def test_a_world_that_moves_has_new_ids_and_other_rates_and_a_best_score() -> None:
    drawn = drifting(40_000, dense=["I1"], sparse=["C1", "C2"])
    again = drifting(40_000, dense=["I1"], sparse=["C1", "C2"])
    parts = [drawn.table.slice(first, 5_000) for first in (0, 5_000, 10_000, 35_000)]
    rates = [np.mean(part["label"].to_numpy()) for part in parts]
    first, last = (set(part["C2"].to_pylist()) for part in (parts[0], parts[-1]))
    most = [Counter(part["C2"].to_pylist()).most_common(1)[0][0] for part in parts]

    assert drawn.table.equals(again.table)
    assert rates[1] > rates[2] + 0.05, "the label rate shifts"
    assert len(last - first) > len(last) / 2, "ids appear"
    assert len(set(most)) == len(most), "popularity moves"
    labels = drawn.table["label"].to_numpy()
    assert exact_auc(drawn.probabilities.astype(np.float32), labels) > 0.6
    assert log_loss(drawn.probabilities, labels) < log_loss(np.full(40_000, labels.mean()), labels)


@pytest.mark.parametrize("wrong", ["--rows=0", "--batch-size=0"])
def test_passes_over_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", "x", wrong])

    assert ended.value.code == 2
