"""Models of a user's torch module: served as `synchromesh predict` computes them."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_jobs import SavedModel, some_samples

from serving import Model
from serving.errors import RequestError
from worker.inference import ModelError, Predictor, probabilities

torch = pytest.importorskip("torch")

MODULE = """
import torch
from torch import nn


class Served(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        width = inputs.width + inputs.dims["tags"]
        self.layers = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense, embeddings):
        tags = embeddings.pop("tags")
        places = torch.arange(1.0, 1 + tags.vectors.shape[1])[:, None]
        last = (tags.vectors * places).sum(1) / (1 + tags.lengths[:, None])
        return self.layers(torch.cat([dense, *embeddings.values(), last], dim=1)).squeeze(1)
"""
SAMPLES = some_samples(np.random.default_rng(9), 60)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedModel]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch_for_serving.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=":")
    model = {"type": "torch", "class": "torch_for_serving:Served"}
    # Of one feature the vectors one by one, in their order.
    sparse = ["a", "b", {"column": "tags", "combiner": "none"}]
    job = SavedModel("plain", tmp_path / "run", model=model, data={"sparse": sparse})
    job.train(3)
    job.cut()
    yield job
    sys.modules.pop("torch_for_serving", None)


def expected(model: Model, checkpoint: str) -> np.ndarray:
    predictor = Predictor.from_checkpoint(model._source.path / checkpoint)
    return probabilities(predictor.logits(model.schema.batch_of_columns(SAMPLES)))


@pytest.mark.parametrize("sessions", [0, 2])
def test_it_is_served_as_it_predicts_by_every_version(
    job: SavedModel, started: Callable[..., Any], sessions: int
) -> None:
    served = started(job, sessions=sessions, follow_seconds=0.02)
    body = {"inputs": {name: array.to_pylist() for name, array in SAMPLES.items()}}
    seen, until = set(), time.monotonic() + 60
    try:
        while 4 not in seen and time.monotonic() < until:
            status, _, found = served.ask("POST", "/v1/models/clicks:predict", body)
            assert status == 200, found
            about = found["metadata"]
            got = np.array(found["outputs"], np.float32)
            np.testing.assert_array_equal(got, expected(served.serving.model, about["checkpoint"]))
            if not seen:
                job.train()
                job.cut()
            seen.add(about["step"])
        assert seen == {3, 4}
    finally:
        served.stop()


def test_sequences_are_lists_or_values_and_lengths_and_may_be_context(
    job: SavedModel, started: Callable[..., Any]
) -> None:
    served = started(job)
    columns: dict[str, Any] = {"d1": [0.5, 2.0], "d2": [1.0, 0.0], "a": [3, -1], "b": [17, 40]}
    model = served.serving.model

    def predicted(tags: list[list[int]]) -> np.ndarray:
        return model.predict({**columns, "tags": tags}).values

    def inferred(*tags: tuple[str, list[int], list[int]]) -> list[float]:
        given = [(name, [2], values) for name, values in columns.items()]
        kinds = {"d1": "FP32", "d2": "FP32"}
        tensors = [
            {"name": name, "datatype": kinds.get(name, "INT64"), "shape": shape, "data": values}
            for name, shape, values in [*given, *tags]
        ]
        status, _, found = served.ask("POST", "/v2/models/clicks/infer", {"inputs": tensors})
        assert status == 200, found
        got: list[float] = np.array(found["outputs"][0]["data"], np.float32).tolist()
        return got

    try:
        _, _, about = served.ask("GET", "/v2/models/clicks")
        shapes = {each["name"]: each["shape"] for each in about["inputs"]}
        assert shapes == {"d1": [-1], "d2": [-1], "a": [-1], "b": [-1], "tags": [-1, -1]}
        one, other = predicted([[7, 2, 9], [2]]), predicted([[2, 7, 9], []])
        assert one[0] != other[0]
        assert one[1] != other[1]
        ragged = inferred(("tags", [4], [7, 2, 9, 2]), ("tags:lengths", [2], [3, 1]))
        assert ragged == one.tolist()
        of_all = predicted([[7, 2, 9], [7, 2, 9]]).tolist()
        assert inferred(("tags", [1, 3], [7, 2, 9])) == of_all
        rows = [{name: values[i] for name, values in columns.items()} for i in range(2)]
        body = {"context": {"tags": [7, 2, 9]}, "instances": rows}
        status, _, found = served.ask("POST", "/v1/models/clicks:predict", body)
        assert status == 200, found
        assert np.array(found["predictions"], np.float32).tolist() == of_all
    finally:
        served.stop()


def test_sequences_without_end_are_refused(
    job: SavedModel, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.step.sequences.MOST_BYTES", 1 << 10)
    model = Model.open(job.run)
    try:
        with pytest.raises(RequestError, match="sequences of sparse feature 'tags' are too long"):
            model.predict({**SAMPLES, "tags": [[1] * 100] + [[2]] * 59})
    finally:
        model.close()


def test_a_class_that_has_changed_since_is_told(
    job: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code" / "torch_for_serving.py"
    code.write_text(MODULE.replace("nn.ReLU()", "nn.RLU()"))
    monkeypatch.delitem(sys.modules, "torch_for_serving", raising=False)

    with pytest.raises(ModelError) as caught:
        Predictor.from_checkpoint(job.cut())

    assert f"at {code}, line 10, in __init__: AttributeError" in str(caught.value)
