"""What holds for any model and batch: sizes, sums, repetition, memory."""

import tracemalloc

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from worker.models import (
    SampleVectors,
    build_model,
    initial_parameters,
    needed_lookups,
    num_parameters,
)
from worker.spec import ModelSpec, SparseFeature

OPTIONS = {
    "dlrm": {"bottom_mlp": [32], "top_mlp": [32, 16]},
    "deepfm": {"mlp": [32, 16]},
    "wide_deep": {"mlp": [32, 16]},
    "linear": {},
}


def tables_of(model_type):
    return {f"t{i}": 1 if model_type == "linear" else 16 for i in range(5)}


@pytest.fixture(params=OPTIONS)
def spec(request):
    sparse = [SparseFeature(name=f"s{i}", column=f"s{i}", table=f"t{i}") for i in range(5)]
    options = OPTIONS[request.param]
    lookups = needed_lookups(request.param, options, sparse, tables_of(request.param))
    return ModelSpec(
        type=request.param, options=options, optimizer=Sgd(), num_dense=3, lookups=lookups
    )


def make_inputs(spec, n):
    generator = np.random.default_rng(n)
    dense = generator.normal(size=(n, 3)).astype(np.float32)
    pooled = generator.normal(size=(n, spec.pooled_width)).astype(np.float32)
    return dense, pooled, (generator.random(n) < 0.3).astype(np.float32)


def train(model, params, inputs):
    dense, pooled, labels = inputs
    grad_params, grad_pooled = np.empty_like(params), np.empty_like(pooled)
    loss = model.train(params, dense, pooled, labels, grad_params, grad_pooled)
    return loss, grad_params, grad_pooled


def test_an_empty_batch_has_no_loss_and_zero_gradients(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    dense, pooled, labels = make_inputs(spec, 0)
    grad_params = np.full_like(params, np.nan)

    loss = model.train(params, dense, pooled, labels, grad_params, np.empty_like(pooled))

    assert loss == 0.0
    np.testing.assert_array_equal(grad_params, 0)
    assert model.predict(params, dense, pooled).shape == (0,)


def test_an_empty_batch_after_a_full_one_has_zero_gradients(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    train(model, params, make_inputs(spec, 9))

    _, grad_params, _ = train(model, params, make_inputs(spec, 0))

    np.testing.assert_array_equal(grad_params, 0)


def test_gradients_are_sums_over_samples(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    whole = make_inputs(spec, 21)

    loss, grad_params, grad_pooled = train(model, params, whole)
    first = train(model, params, tuple(x[:10] for x in whole))
    second = train(model, params, tuple(x[10:] for x in whole))

    assert first[0] + second[0] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(first[1] + second[1], grad_params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.vstack([first[2], second[2]]), grad_pooled, rtol=1e-4, atol=1e-6)


def test_the_same_batch_gives_the_same_bits_whatever_was_trained_before(spec, pooled_model):
    params = initial_parameters(pooled_model(spec), 0)
    inputs = make_inputs(spec, 33)
    fresh = train(pooled_model(spec), params, inputs)

    used = pooled_model(spec)
    train(used, params, make_inputs(spec, 57))
    train(used, params, make_inputs(spec, 5))
    again = train(used, params, inputs)

    assert fresh[0] == again[0]
    np.testing.assert_array_equal(fresh[1], again[1])
    np.testing.assert_array_equal(fresh[2], again[2])


def test_parameters_may_be_read_only_and_lie_anywhere(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    inputs = make_inputs(spec, 17)
    expected = train(model, params, inputs)
    shifted = np.empty(len(params) + 1, np.float32)[1:]
    shifted[:] = params
    shifted.flags.writeable = False
    grad_params = np.empty(len(params) + 3, np.float32)[3:]
    grad_pooled = np.empty_like(inputs[1])

    loss = model.train(shifted, *inputs, grad_params, grad_pooled)

    assert loss == expected[0]
    np.testing.assert_array_equal(grad_params, expected[1])
    np.testing.assert_array_equal(grad_pooled, expected[2])


def test_training_leaves_its_inputs_alone(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    inputs = make_inputs(spec, 8)
    before = [x.copy() for x in (params, *inputs)]

    train(model, params, inputs)

    for kept, now in zip(before, (params, *inputs), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_a_prediction_is_not_overwritten_by_the_next(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    dense, pooled, _ = make_inputs(spec, 8)
    logits = model.predict(params, dense, pooled)
    kept = logits.copy()

    model.predict(params, dense + 1, pooled)

    np.testing.assert_array_equal(logits, kept)


def test_a_parameter_that_is_not_finite_shows_in_the_loss(spec, pooled_model):
    model = pooled_model(spec)
    for parameter in range(0, num_parameters(model), 37):
        params = initial_parameters(model, 0)
        params[parameter] = np.nan

        loss, _, _ = train(model, params, make_inputs(spec, 16))

        assert np.isnan(loss)


def test_training_in_the_steady_state_allocates_nothing_large(spec, pooled_model):
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    dense, pooled, labels = make_inputs(spec, 2000)
    grad_params, grad_pooled = np.empty_like(params), np.empty_like(pooled)
    arguments = (params, dense, pooled, labels, grad_params, grad_pooled)
    model.train(*arguments)

    tracemalloc.start()
    model.train(*arguments)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # The smallest layer's output has 128,000 bytes; NumPy's own work buffers have 65,536.
    assert peak_bytes < 100_000


@pytest.mark.parametrize("name", OPTIONS)
def test_a_samples_prediction_is_the_same_in_any_batch(name, pooled_model):
    sparse = [SparseFeature(name=f"s{i}", column=f"s{i}", table=f"t{i}") for i in range(5)]
    lookups = needed_lookups(name, {}, sparse, tables_of(name))
    spec = ModelSpec(type=name, options={}, optimizer=Sgd(), num_dense=3, lookups=lookups)
    model = pooled_model(spec)
    params = initial_parameters(model, 0)
    dense, pooled, _ = make_inputs(spec, 200)

    whole = model.predict(params, dense, pooled)

    for first, last in [(0, 1), (1, 2), (7, 12), (3, 100), (96, 200), (199, 200)]:
        part = model.predict(params, dense[first:last].copy(), pooled[first:last].copy())
        np.testing.assert_array_equal(part, whole[first:last])


def test_packed_parameters_predict_as_those_that_they_were_made_of(spec):
    model = build_model(spec)
    params = initial_parameters(model, 0)
    packed = model.packed(params)
    dense, pooled, _ = make_inputs(spec, 20)
    if model.reads_vectors:
        columns = [lookup.column for lookup in spec.lookups]
        pooled = SampleVectors.of_pooled(pooled, columns, np.empty((5, 20), np.int64))
    expected = model.predict(params, dense, pooled)

    params[:] = 0

    np.testing.assert_array_equal(model.predict(packed, dense, pooled), expected)
