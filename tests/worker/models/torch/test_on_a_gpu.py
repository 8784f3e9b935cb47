"""What only a GPU can show of a module that computes on one; run by `make gpu-check`."""

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_models import Tried

torch = pytest.importorskip("torch")

from worker.models.torch.device_model import DeviceModel  # noqa: E402
from worker.models.torch.gpu import DEVICE, gpu_facts  # noqa: E402

pytestmark = pytest.mark.gpu

LAYERS = """
class M(nn.Module):
    def __init__(self, inputs, width=256, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(width, 1),
        )

    def forward(self, dense, embeddings):
        return self.layers(torch.cat([dense, *embeddings.values()], dim=1)).squeeze(1)
"""
MAKES_A_SHAPE_OF_VALUES = LAYERS.replace(
    "return self.layers(torch.cat(", "len(dense[dense[:, 0] > 0]); return self.layers(torch.cat("
)

Result = tuple[float, np.ndarray, np.ndarray]


def train_on(model: Any, tried: Tried, batch_id: int = 0) -> Result:
    on = tried.rows(slice(None))
    on.model = model
    return on.train(tried.weights, batch_id=batch_id)


def assert_same_bits(one: Result, other: Result) -> None:
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-4), ({"precision": "tf32"}, 2e-2), ({"precision": "bf16"}, 1e-1)],
    ids=["float32", "tf32", "bf16"],
)
def test_gradients_and_predictions_are_those_of_the_cpu_up_to_rounding(
    tried: Callable[..., Tried], options: dict[str, str], tolerance: float
) -> None:
    this = tried(LAYERS, n=500)
    exact = this.train(this.weights)
    model = DeviceModel(tried(LAYERS, n=500, **options).spec, DEVICE)

    found = train_on(model, this)

    assert found[0] == pytest.approx(exact[0], rel=tolerance)
    for mine, its in zip(found[1:], exact[1:], strict=True):
        np.testing.assert_allclose(mine, its, rtol=tolerance, atol=tolerance * np.abs(its).max())
    predicted = model.predict(this.params, this.dense, this.pooled)
    np.testing.assert_allclose(predicted, this.predict(), rtol=tolerance, atol=tolerance)


def test_a_batch_has_the_same_bits_each_time_and_beside_another(
    tried: Callable[..., Tried],
) -> None:
    this = tried(LAYERS, n=2048, dropout=0.3)
    parts = [this.rows(slice(0, 1024)), this.rows(slice(1024, 2048))] * 4
    models = [DeviceModel(this.spec, DEVICE, overlapped=overlapped) for overlapped in (True, False)]
    alone = [[train_on(model, part, at) for at, part in enumerate(parts)] for model in models]
    for one, other in zip(*alone, strict=True):
        assert_same_bits(one, other)

    model, begun, found = models[0], [], []
    for at, part in enumerate(parts):
        model.begin_batch(at)
        begun.append(model.begin(this.params, part.dense, part.pooled, part.labels, part.weights))
        if at:
            found.append(ended(model, begun[at - 1], parts[at - 1]))
    found.append(ended(model, begun[-1], parts[-1]))

    for one, other in zip(found, alone[0], strict=True):
        assert_same_bits(one, other)


def ended(model: DeviceModel, begun: Any, part: Tried) -> Result:
    grads = np.empty_like(part.params), np.empty_like(part.pooled)
    return model.end(begun, *grads), *grads


def test_a_graph_gives_the_bits_of_its_operations(tried: Callable[..., Tried]) -> None:
    this = tried(LAYERS, n=512, cuda_graphs=True)
    by_graph, by_operation = DeviceModel(this.spec, DEVICE), DeviceModel(tried(LAYERS).spec, DEVICE)
    for at in range(8):
        part = this.rows(slice(0, 100 if at == 6 else 512))
        part.params = this.params * (1 + at)
        part.pooled = part.pooled * (1 + at)

        assert_same_bits(train_on(by_graph, part, at), train_on(by_operation, part, at))

    graph = by_graph._graphs._graph  # type: ignore[union-attr]
    assert graph is not None
    assert graph.tried


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (LAYERS, {"dropout": 0.3}, "forward draws random numbers"),
        (MAKES_A_SHAPE_OF_VALUES, {}, "synchronizing CUDA operation"),
    ],
    ids=["dropout", "a shape of values"],
)
def test_no_graph_is_made_of_what_draws_or_waits(
    tried: Callable[..., Tried],
    caplog: pytest.LogCaptureFixture,
    source: str,
    options: dict[str, Any],
    reason: str,
) -> None:
    this = tried(source, n=64, cuda_graphs=True, **options)
    model = DeviceModel(this.spec, DEVICE)

    with caplog.at_level(logging.WARNING):
        first = [train_on(model, this, at) for at in range(6)]

    assert reason in caplog.text
    assert_same_bits(first[5], train_on(model, this, 5))


def test_a_device_is_known_by_its_name_and_the_versions_that_compute_on_it() -> None:
    facts = gpu_facts()

    assert sorted(facts) == ["cuda", "cudnn", "gpu"]
    assert all(facts.values())
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
