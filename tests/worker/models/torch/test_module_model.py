"""A user's module: gradients of sums, its own initial values, the same bits whenever it runs."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from torch_models import Tried

from worker.models import (
    PackedParameters,
    SampleVectors,
    build_model,
    initial_parameters,
    parameter_views,
)
from worker.models.torch import ModuleInputs

torch = pytest.importorskip("torch")

TWO_LAYERS = """
class M(nn.Module):
    def __init__(self, inputs, width=8, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, dense, embeddings):
        return self.layers(torch.cat([dense, *embeddings.values()], dim=1)).squeeze(1)
"""
OWN_LOSS = (
    TWO_LAYERS
    + """
    def loss(self, logits, labels):
        return (logits - labels) ** 2
"""
)


def module_of(tried: Tried, **options: int) -> Any:
    """Return another module of the class, as a user makes one."""
    module_name, class_name = tried.spec.options["class"].split(":")
    kind = getattr(sys.modules[module_name], class_name)
    return kind(ModuleInputs(num_dense=3, dims={"a": 4, "b": 2}), **options)


def reference(tried: Tried, params: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """The logits of TWO_LAYERS, in float64."""
    weight, bias, last, last_bias = parameter_views(params, tried.model.parameters)
    hidden = np.tanh(np.hstack([tried.dense, pooled]).astype(np.float64) @ weight.T + bias)
    return hidden @ last[0] + last_bias


def sum_of_losses(tried: Tried, params: np.ndarray, pooled: np.ndarray, squares: bool) -> float:
    z = reference(tried, params, pooled)
    each = (z - tried.labels) ** 2 if squares else np.logaddexp(0, z) - tried.labels * z
    return float((tried.weights * each).sum())


@pytest.mark.parametrize("examined", [False, True])
def test_logits_of_training_are_kept_where_they_are_those_of_a_prediction(
    tried: Callable[..., Tried], examined: bool
) -> None:
    for dropout in (0.0, 0.1):
        this = tried(TWO_LAYERS, dropout=dropout)
        if examined:  # as a job is before it begins, and no worker
            this.model.examine()  # type: ignore[attr-defined]
        this.train()

        assert hasattr(this.model, "logits") == (dropout == 0)
        if not dropout:
            np.testing.assert_array_equal(this.model.logits, this.predict())


@pytest.mark.parametrize("squares", [False, True], ids=["log loss", "its own"])
def test_gradients_are_those_of_the_weighted_sum_of_losses(
    tried: Callable[..., Tried], squares: bool
) -> None:
    this = tried(OWN_LOSS if squares else TWO_LAYERS)
    params, pooled = this.params.astype(np.float64), this.pooled.astype(np.float64)
    step = 1e-6

    def difference(vector: np.ndarray, at: int) -> float:
        kept = vector.flat[at]
        losses = []
        for value in (kept + step, kept - step):
            vector.flat[at] = value
            losses.append(sum_of_losses(this, params, pooled, squares))
        vector.flat[at] = kept
        return (losses[0] - losses[1]) / (2 * step)

    loss, grad_params, grad_pooled = this.train(this.weights)

    assert loss == pytest.approx(sum_of_losses(this, params, pooled, squares), rel=1e-6)
    by_params = [difference(params, at) for at in range(params.size)]
    by_pooled = [difference(pooled, at) for at in range(pooled.size)]
    np.testing.assert_allclose(grad_params, by_params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_pooled.ravel(), by_pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", [TWO_LAYERS, OWN_LOSS], ids=["log loss", "its own"])
def test_sums_of_parts_are_the_sum_of_the_whole(tried: Callable[..., Tried], source: str) -> None:
    this = tried(source)
    whole = this.train(this.weights)
    parts = [this.rows(rows) for rows in (slice(0, 3), slice(3, 7))]

    one, other = (part.train(part.weights) for part in parts)

    assert one[0] + other[0] == pytest.approx(whole[0], rel=1e-5)
    np.testing.assert_allclose(one[1] + other[1], whole[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.vstack([one[2], other[2]]), whole[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("source", [TWO_LAYERS, OWN_LOSS], ids=["log loss", "its own"])
def test_weights_of_1_change_no_bit(tried: Callable[..., Tried], source: str) -> None:
    this = tried(source)
    ones = np.ones(this.n, np.float32)

    for plain, weighted in zip(this.train(), this.train(ones), strict=True):
        np.testing.assert_array_equal(plain, weighted)


def test_vectors_are_read_where_they_lie_and_their_gradients_added_there(
    tried: Callable[..., Tried],
) -> None:
    this = tried(TWO_LAYERS)
    # Sample 1 has the vectors of sample 0, and the others lie in another order than the samples.
    order = np.array([0, 0, 3, 2, 4, 6, 5])
    flat = np.concatenate([this.pooled[:, 4:].ravel(), this.pooled[:, :4].ravel()])
    positions = np.stack([2 * this.n + 4 * order, 2 * order])
    alike = replace(this)
    alike.pooled[:] = this.pooled[order]
    loss, grad_params, grad_pooled = alike.train(this.weights)
    grad_flat, found_params = np.ones_like(flat), np.empty_like(grad_params)
    model: Any = this.model

    found = model.train(
        this.params, alike.dense, SampleVectors(flat, positions), alike.labels, found_params,
        grad_flat, this.weights,
    )  # fmt: skip

    assert model.reads_vectors
    assert found == loss
    np.testing.assert_array_equal(found_params, grad_params)
    expected = np.ones((this.n, 6), np.float32)
    np.add.at(expected, order, grad_pooled)
    np.testing.assert_allclose(grad_flat[2 * this.n :].reshape(-1, 4), expected[:, :4], rtol=1e-6)
    np.testing.assert_allclose(grad_flat[: 2 * this.n].reshape(-1, 2), expected[:, 4:], rtol=1e-6)
    np.testing.assert_array_equal(
        model.predict(this.params, alike.dense, SampleVectors(flat, positions)), alike.predict()
    )


def test_it_keeps_what_a_job_on_a_stream_asks_for(tried: Callable[..., Tried]) -> None:
    for source in (TWO_LAYERS, OWN_LOSS):
        this = tried(source)
        this.model.examine()
        this.train(this.weights)

        z = reference(this, this.params, this.pooled)
        np.testing.assert_allclose(this.model.logits, z, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(this.model.logits, this.predict())


def test_it_begins_as_torch_would_with_the_seed_of_the_job(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS, width=5)

    for seed in (this.spec.seed, 99):
        torch.manual_seed(seed)
        module = module_of(this, width=5)
        expected = [each.detach().numpy().ravel() for each in module.parameters()]
        found = initial_parameters(this.model, seed)
        np.testing.assert_array_equal(found, np.concatenate(expected))
    names = [parameter.name for parameter in this.model.parameters]
    assert names == [name for name, _ in module.named_parameters()]


def test_random_numbers_of_others_are_left_alone(tried: Callable[..., Tried]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    this = tried(TWO_LAYERS, dropout=0.5)
    this.model.examine()
    this.train()

    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_dropout_is_drawn_by_the_seed_and_the_batch(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS, dropout=0.5)
    loss, *gradients = this.train(batch_id=3)
    other, *_ = this.train(batch_id=4)
    torch.rand(5)
    again, *same = this.train(batch_id=3)

    assert loss == again != other
    for one, two in zip(gradients, same, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(this.predict(), this.predict())
    np.testing.assert_allclose(this.predict(), reference(this, this.params, this.pooled), rtol=1e-4)


def test_models_that_are_made_meanwhile_change_no_mask(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS, dropout=0.5, n=400)
    expected = [this.train(batch_id=number)[0] for number in range(30)]
    over = threading.Event()

    def make() -> None:
        while not over.is_set():
            build_model(this.spec)

    thread = threading.Thread(target=make)
    thread.start()
    try:
        found = [this.train(batch_id=number)[0] for number in range(30)]
    finally:
        over.set()
        thread.join()

    assert found == expected


def test_logits_of_training_are_withheld_where_dropout_is_in_them(
    tried: Callable[..., Tried],
) -> None:
    this = tried(TWO_LAYERS, dropout=0.5)
    this.model.examine()

    assert not hasattr(this.model, "logits")


def test_where_arrays_lie_in_memory_changes_no_bit(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS, n=300, width=33)
    expected, predicted = this.train(this.weights), this.predict()

    for shift in (1, 3, 9):
        for name in ("params", "dense", "pooled", "labels", "weights"):
            array = getattr(this, name)
            moved = np.empty(array.size + 16, np.float32)[shift : shift + array.size]
            moved[:] = array.ravel()
            moved.flags.writeable = False
            setattr(this, name, moved.reshape(array.shape))
        for one, other in zip(expected, this.train(this.weights), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(predicted, this.predict())


def test_packed_parameters_predict_the_same(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS)
    predicted = this.predict()
    packed = this.model.packed(this.params)
    other = this.model.packed(this.params + 1)

    assert isinstance(packed, PackedParameters)
    for given, expected in ((packed, True), (other, False), (packed, True), (this.params, True)):
        found = this.model.predict(given, this.dense, this.pooled)
        assert np.array_equal(found, predicted) == expected


def test_a_batch_of_nothing_is_no_work(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS).rows(slice(0, 0))

    loss, grad_params, grad_pooled = this.train()

    assert loss == 0.0
    assert not grad_params.any()
    assert grad_pooled.shape == (0, 6)
    assert this.predict().shape == (0,)


def test_a_parameter_that_a_batch_does_not_reach_has_a_gradient_of_0(
    tried: Callable[..., Tried],
) -> None:
    this = tried("""
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.few, self.many = (nn.Parameter(torch.ones(inputs.num_dense)) for _ in range(2))

    def forward(self, dense, embeddings):
        return dense @ (self.few if len(dense) < 5 else self.many)
""")
    _, grad_params, grad_pooled = this.train()

    assert not grad_params[:3].any()
    assert grad_params[3:].all()
    assert not grad_pooled.any()


def test_vectors_are_given_by_the_names_of_their_features(tried: Callable[..., Tried]) -> None:
    this = tried(
        """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        assert (inputs.num_dense, inputs.dims, inputs.width) == (3, {"long": 5, "b": 2}, 10)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, dense, embeddings):
        assert all(each.is_contiguous() for each in embeddings.values())
        return dense[:, 1] + 10 * embeddings["long"][:, 4] + 100 * embeddings["b"][:, 0] + self.bias
""",
        dims={"long": 5, "b": 2},
    )

    expected = this.dense[:, 1] + 10 * this.pooled[:, 4] + 100 * this.pooled[:, 5]
    np.testing.assert_allclose(this.predict(), expected, rtol=1e-5)
    _, _, grad_pooled = this.train()
    assert (grad_pooled != 0).any(axis=0).tolist() == [False] * 4 + [True, True, False]


def test_in_bf16_products_are_rounded_and_parameters_and_gradients_are_not(
    tried: Callable[..., Tried],
) -> None:
    exact = tried(TWO_LAYERS, width=16, n=200)
    rounded = tried(TWO_LAYERS, width=16, n=200, precision="bf16")
    rounded.params = exact.params

    difference = np.abs(exact.predict() - rounded.predict()).max()
    assert 1e-5 < difference < 0.05
    for one, other in zip(exact.train()[1:], rounded.train()[1:], strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=0.05 * np.abs(one).max())
    assert rounded.train()[0] == rounded.train()[0]


def test_its_threads_are_those_of_the_job(tried: Callable[..., Tried]) -> None:
    this = tried(TWO_LAYERS)
    try:
        for threads in (2, 1):
            this.model.use_threads(threads)
            this.train()
            assert torch.get_num_threads() == threads
            pools = threadpoolctl.threadpool_info()
            of_torch = [p for p in pools if p["user_api"] == "openmp" and "torch" in p["filepath"]]
            assert {pool["num_threads"] for pool in of_torch} <= {threads}
    finally:
        torch.set_num_threads(1)


def test_its_state_is_what_its_class_loads(tried: Callable[..., Tried]) -> None:
    this = tried(
        TWO_LAYERS.replace(
            "super().__init__()",
            """super().__init__()
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("left", torch.arange(2.0), persistent=False)""",
        )
    )
    this.params += 1

    state = this.model.state(this.params)

    module = module_of(this)
    module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    assert "kept" in state
    pooled = torch.tensor(this.pooled)
    logits = module(torch.tensor(this.dense), {"a": pooled[:, :4], "b": pooled[:, 4:]})
    np.testing.assert_allclose(logits.detach(), this.predict(), rtol=1e-5)
