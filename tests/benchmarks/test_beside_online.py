"""One pass beside other learners: the same rows in the same order, and lines of what is there."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from beside_online import DENSE, SPARSE, main, others, read

from bench import other_learners
from bench.other_learners import RIVER, VOWPAL_WABBIT, Samples
from worker.datasets.synthetic import CriteoLike, write_criteo_like


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
    assert [line["samples"] for line in ours] == [300, 300]


@pytest.mark.parametrize("wrong", ["--rows=0", "--batch-size=0"])
def test_passes_over_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", "x", wrong])

    assert ended.value.code == 2
