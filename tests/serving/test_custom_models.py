"""Models of a user's own class: each request by itself, as `synchromesh predict` computes it."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import SavedModel, some_samples

from serving import Model, ServingError
from serving.calls import Answer, Call
from serving.session import Session, SessionOptions
from serving.wire import arrow
from worker.inference import ModelError, Predictor, probabilities

SAMPLES = some_samples(np.random.default_rng(9), 60)

# What a sample's logit is depends on what else is in its batch.
CENTRED = """
import numpy as np
from worker.models import Parameter
from embedding import Uniform

class Centred:
    def __init__(self, spec):
        width = spec.pooled_width + spec.num_dense
        self.parameters = (Parameter("w", (width,), Uniform(scale=0.5)),)

    def train(self, *arguments, **more):
        raise AssertionError("nothing is trained here")

    def predict(self, params, dense, pooled):
        inputs = np.concatenate([pooled, dense], axis=1)
        return ((inputs - inputs.mean(axis=0)) @ params).astype(np.float32)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SavedModel:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "centred_for_serving.py").write_text(CENTRED)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    model = {"type": "custom", "class": "centred_for_serving:Centred"}
    job = SavedModel("plain", tmp_path / "run", model=model)
    job.train(3)
    job.cut()
    return job


def expected(model: Model, samples: dict[str, Any]) -> np.ndarray:
    path = model._source.path / model.version.checkpoint
    return probabilities(
        Predictor.from_checkpoint(path).logits(model.schema.batch_of_columns(samples))
    )


def part(first: int, last: int) -> dict[str, Any]:
    return {name: array[first:last] for name, array in SAMPLES.items()}


def test_requests_that_come_together_are_computed_each_by_itself(job: SavedModel) -> None:
    with Model.open(job.run) as model:
        session = Session(model.current, SessionOptions(name="m", max_delay=0.2))
        model.when_swapped(session.take)
        for _ in range(2):
            answers: dict[int, Answer] = {}
            all_there = threading.Event()

            def done(number: int, answer: Answer) -> None:
                answers[number] = answer  # noqa: B023
                if len(answers) == 3:  # noqa: B023
                    all_there.set()  # noqa: B023

            for number in range(3):
                columns = part(20 * number, 20 * number + 20)
                (batch,) = pa.table(columns).to_batches()
                call = Call("arrow", arrow.written(batch), None, time.monotonic() + 60)
                session.submit(call, lambda answer, number=number: done(number, answer))
            assert all_there.wait(60)
            for number, answer in answers.items():
                found, _ = arrow.answered(answer.body)
                alone = expected(model, part(20 * number, 20 * number + 20))
                np.testing.assert_array_equal(found.column(0).to_numpy(), alone)
            together = expected(model, SAMPLES)
            assert not np.array_equal(together[:20], expected(model, part(0, 20)))
            job.train()
            job.cut()
            model.refresh()
        session.close()


def test_it_is_served_as_it_predicts(job: SavedModel, started: Callable[..., Any]) -> None:
    served = started(job)
    try:
        body = {"inputs": {name: array.to_pylist() for name, array in SAMPLES.items()}}
        status, _, found = served.ask("POST", "/v1/models/clicks:predict", body)
        assert status == 200, found
        got = np.array(found["outputs"], np.float32)
        np.testing.assert_array_equal(got, expected(served.serving.model, SAMPLES))
    finally:
        served.stop()


def test_a_class_that_is_not_there_is_named(
    job: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (tmp_path / "code" / "centred_for_serving.py").read_text()
    monkeypatch.delitem(sys.modules, "centred_for_serving", raising=False)
    (tmp_path / "code" / "centred_for_serving.py").write_text(code.replace("Centred", "Other"))
    with pytest.raises((ModelError, ServingError), match="Centred"):
        Model.open(job.run)
