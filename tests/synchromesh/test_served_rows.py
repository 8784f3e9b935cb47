"""Rows of fewer bits are served where the model ranks as well with them, on labelled samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_jobs import SavedModel, some_samples

from scheduler import ConfigError
from synchromesh.commands.main import main
from synchromesh.served_rows import rows_loss


@pytest.fixture
def job(tmp_path: Path) -> SavedModel:
    job = SavedModel("plain", tmp_path / "run")
    job.train(6)
    job.cut()
    return job


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    rng = np.random.default_rng(7)
    labels = pa.array((rng.random(500) < 0.4).astype(np.float32))
    pq.write_table(pa.table({**some_samples(rng, 500), "label": labels}), tmp_path / "some.parquet")
    return str(tmp_path / "some.parquet")


def test_the_loss_is_that_of_the_same_samples_with_both(job: SavedModel, labelled: str) -> None:
    found = rows_loss(job.run, rows="int8", data=[labelled])

    assert found.samples == 500
    assert 0 < abs(found.loss) < 0.02
    assert found.loss == found.auc - found.auc_kept
    assert found.vector_bytes_kept < found.vector_bytes
    names = [path.name for path in (job.run / "serving").iterdir()]
    assert len(names) == 1, "what was compared with is removed"
    assert names[0].endswith("-int8")


def test_without_labelled_samples_nothing_is_known(job: SavedModel) -> None:
    with pytest.raises(ConfigError, match="name a job file, or files with --data"):
        rows_loss(job.run, rows="int8")


def test_rows_that_lose_more_than_the_bound_are_not_served(
    job: SavedModel, labelled: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("synchromesh.served_rows.MAX_AUC_LOSS", -1.0)

    code = main(["serve", str(job.run), "--rows", "int8", "--data", labelled, "--port", "0"])

    assert code == 2
    told = capsys.readouterr().err
    assert "with rows as int8" in told
    assert "more than -1.0 is lost; --force serves them all the same" in told


def test_rows_as_trained_are_not_measured(job: SavedModel, capsys: Any) -> None:
    assert main(["serve", str(job.run), "--force"]) == 2
    assert "--data and --force are of --rows bf16 and int8" in capsys.readouterr().err
