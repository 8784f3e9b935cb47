"""What other software is given computes what the model does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import JOBS, SavedModel

from serving import Model
from synchromesh.commands.main import main
from synchromesh.exporting import ExportError, export_embeddings, export_model
from worker.inference import probabilities
from worker.models import SampleVectors, build_model

KEYS_ONLY = {
    "data": {"dense": [], "sparse": ["a", "b"]},
    "tables": {},
    "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
}
LOG1P = {"data": {"sparse": ["a", "b"], "dense_transform": "log1p"}, "tables": {}}

LINEAR = {"tables": {"a": {"dim": 1}, "b": {"dim": 1}}, "model": {"type": "linear"}}


def made(name: str, folder: Path, **sections: Any) -> SavedModel:
    job = SavedModel(name, folder, **sections)
    job.train(4)
    job.cut()
    return job


def ours(job: SavedModel, dense: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    model = build_model(job.model)
    inputs: Any = pooled
    if getattr(model, "reads_vectors", False):
        columns = [lookup.column for lookup in job.model.lookups]
        positions = np.empty((len(columns), len(pooled)), np.int64)
        inputs = SampleVectors.of_pooled(pooled, columns, positions)
    parameters = job.shard.dense.rows[0, : job.spec.dense_size].copy()
    return probabilities(model.predict(parameters, dense, inputs))


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        *[(name, {}) for name in JOBS],
        ("plain", KEYS_ONLY),
        ("plain", {**LOG1P, "model": {"type": "wide_deep", "mlp": [8, 4]}}),
        ("plain", {**LOG1P, "model": {"type": "deepfm", "mlp": []}}),
        ("plain", {**LOG1P, **LINEAR}),
    ],
    ids=[*JOBS, "dlrm of keys", "log1p", "no hidden layer", "linear"],
)
def test_the_graph_gives_the_models_predictions(
    name: str, sections: dict[str, Any], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    job = made(name, tmp_path / "run", **sections)
    export_model(job.run, tmp_path / "out", formats=["onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    rng = np.random.default_rng(3)

    for n in (1, 37):
        pooled = rng.normal(size=(n, job.model.pooled_width)).astype(np.float32)
        raw = rng.exponential(size=(n, job.model.num_dense)).astype(np.float32)
        dense = np.log1p(raw) if job.features.dense_transform == "log1p" else raw
        given = {"dense": raw, "pooled": pooled} if raw.size else {"pooled": pooled}
        (found,) = session.run(None, given)

        assert found.shape == (n,)
        np.testing.assert_allclose(found, ours(job, dense, pooled), rtol=1e-4, atol=1e-6)


def test_rows_and_parameters_of_safetensors_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    numpy_of = pytest.importorskip("safetensors.numpy")
    job = made("plain", tmp_path / "run")

    line = export_model(job.run, tmp_path / "out", formats=["safetensors", "onnx", "parquet"])

    for table in job.shard.tables:
        found = numpy_of.load_file(tmp_path / "out" / table.spec.name / "rows.safetensors")
        keys = found["keys"]
        assert (np.diff(keys) > 0).all()
        assert keys.size == line["rows"][table.spec.name] == len(table)
        vectors = np.empty((keys.size, table.spec.dim), np.float32)
        table.pull(keys, None, vectors, np.empty(keys.size, np.uint8))
        np.testing.assert_array_equal(found["vectors"], vectors)
    dense = numpy_of.load_file(tmp_path / "out" / "dense.safetensors")
    order = [parameter.name for parameter in build_model(job.model).parameters]
    np.testing.assert_array_equal(
        np.concatenate([dense[name].reshape(-1) for name in order]),
        job.shard.dense.rows[0, : job.spec.dense_size],
    )
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["files"] == ["dense.safetensors", "model.onnx"]
    assert [each["feature"] for each in about["model"]["lookups"]] == ["a", "b", "tags"]
    assert about["model"]["default_values"]["b"] == pytest.approx(0.1)


def test_an_export_replaces_one_of_other_formats(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("safetensors")
    job, out = made("plain", tmp_path / "run"), tmp_path / "out"
    export_model(job.run, out, formats=["safetensors", "onnx"])

    export_embeddings(job.run, out, tables=["b"], overwrite=True)

    assert sorted(path.name for path in out.iterdir()) == ["b", "export.json"]
    with pytest.raises(ExportError, match="is not empty; use --overwrite"):
        export_model(job.run, out, formats=["onnx"])


def test_what_can_not_be_exported_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = made("plain", tmp_path / "run"), str(tmp_path / "out")
    with pytest.raises(ExportError, match="--tables is of the formats"):
        export_model(job.run, out, formats=["onnx"], tables=["a"])
    monkeypatch.setattr("synchromesh.exporting.find_spec", lambda name: None)

    code = main(["export", str(job.run), out, "--format", "safetensors"])

    assert code == 2
    assert "safetensors is missing: pip install 'synchromesh[export]'" in capsys.readouterr().err
    assert not Path(out).exists()


def test_the_example_of_the_page_predicts_what_the_server_does(tmp_path: Path) -> None:
    """docs/serving-elsewhere.md, its first Python block, on a model of plain lookups."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("safetensors")
    sections = {**KEYS_ONLY, "data": {"sparse": ["a", "b"]}}
    job = made("plain", tmp_path / "run", **sections)
    export_model(job.run, tmp_path / "out", formats=["safetensors", "onnx"])
    page = Path(__file__).resolve().parents[2] / "docs" / "serving-elsewhere.md"
    example = page.read_text().split("```python\n")[1].split("```")[0]
    example = example.replace('"runs/elsewhere"', repr(str(tmp_path / "out")))
    names: dict[str, Any] = {}
    exec(compile(example, str(page), "exec"), names)
    # Keys that have rows: the export knows no initial value of others.
    columns = {
        "d1": [1.0, 2.5, 0.0],
        "d2": [0.0, 1.0, 3.0],
        "a": names["TABLES"]["a"][0][:3].tolist(),
        "b": names["TABLES"]["b"][0][-3:].tolist(),
    }
    found = names["predict"]({n: np.array(v) for n, v in columns.items()})

    with Model.open(job.run) as model:
        expected = model.predict({n: pa.array(v) for n, v in columns.items()}).values
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
