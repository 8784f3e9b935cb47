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
from worker.inference import ModelError, Predictor, probabilities

torch = pytest.importorskip("torch")

MODULE = """
import torch
from torch import nn


class Served(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs.width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense, embeddings):
        return self.layers(torch.cat([dense, *embeddings.values()], dim=1)).squeeze(1)
"""
SAMPLES = some_samples(np.random.default_rng(9), 60)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedModel]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch_for_serving.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=":")
    model = {"type": "torch", "class": "torch_for_serving:Served"}
    job = SavedModel("plain", tmp_path / "run", model=model)
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


def test_a_class_that_has_changed_since_is_told(
    job: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code" / "torch_for_serving.py"
    code.write_text(MODULE.replace("nn.ReLU()", "nn.RLU()"))
    monkeypatch.delitem(sys.modules, "torch_for_serving", raising=False)

    with pytest.raises(ModelError) as caught:
        Predictor.from_checkpoint(job.cut())

    assert f"at {code}, line 9, in __init__: AttributeError" in str(caught.value)
