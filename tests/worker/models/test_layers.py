import re

import numpy as np
import pytest

from worker.models.layers import (
    Mlp,
    RowBuffer,
    add_bias,
    add_bias_relu,
    column_sums,
    read_widths,
    relu_gradient,
)

DEFAULTS = {"bottom_mlp": (8, 4), "top_mlp": (8,)}


@pytest.fixture(params=[(0, 3), (1, 1), (5, 17), (33, 64)], ids=str)
def matrix(request):
    return np.random.default_rng(1).normal(size=request.param).astype(np.float32)


def test_bias_is_added_to_each_row(matrix):
    bias = np.arange(matrix.shape[1], dtype=np.float32)
    out = matrix.copy()

    add_bias(out, bias)

    np.testing.assert_array_equal(out, matrix + bias)


def test_relu_follows_the_bias(matrix):
    bias = np.linspace(-1, 1, matrix.shape[1], dtype=np.float32)
    out = matrix.copy()

    add_bias_relu(out, bias)

    np.testing.assert_array_equal(out, np.maximum(matrix + bias, 0))


def test_relu_keeps_nan():
    out = np.array([[np.nan, -1, 1]], np.float32)

    add_bias_relu(out, np.zeros(3, np.float32))

    np.testing.assert_array_equal(out, [[np.nan, 0, 1]])


def test_the_gradient_of_relu_passes_where_it_was_positive(matrix):
    outputs = np.maximum(matrix, 0)
    grad = np.random.default_rng(2).normal(size=matrix.shape).astype(np.float32)
    expected = grad * (matrix > 0)
    grad_bias = np.full(matrix.shape[1], np.nan, np.float32)

    relu_gradient(grad, outputs, grad_bias)

    np.testing.assert_array_equal(grad, expected)
    np.testing.assert_allclose(grad_bias, expected.sum(axis=0, dtype=np.float64), atol=1e-5)


def test_column_sums_replace_what_was_there(matrix):
    sums = np.full(matrix.shape[1], np.nan, np.float32)

    column_sums(matrix, sums)

    np.testing.assert_allclose(sums, matrix.sum(axis=0, dtype=np.float64), atol=1e-5)


def test_a_buffer_is_the_same_memory_until_it_must_grow():
    buffer = RowBuffer(3)
    large = buffer.rows(10)

    assert np.shares_memory(buffer.rows(4), large)
    assert buffer.rows(4).shape == (4, 3)
    assert buffer.rows(11).shape == (11, 3)


def test_the_gradient_of_some_input_columns_equals_that_of_all():
    generator = np.random.default_rng(3)
    mlp = Mlp("x", (5, 4, 2), relu_last=False)
    weights = [generator.normal(size=p.shape).astype(np.float32) for p in mlp.parameters]
    gradients = [np.empty_like(weight) for weight in weights]
    inputs = generator.normal(size=(6, 5)).astype(np.float32)
    grad_outputs = generator.normal(size=(6, 2)).astype(np.float32)
    every, some = np.empty((6, 5), np.float32), np.empty((6, 3), np.float32)

    mlp.forward(weights, inputs)
    mlp.backward(weights, inputs, grad_outputs, gradients, every)
    mlp.backward(weights, inputs, grad_outputs, gradients, some)

    np.testing.assert_allclose(some, every[:, :3], rtol=1e-5)


def test_the_names_and_shapes_of_layers_are_those_of_their_widths():
    mlp = Mlp("top", (5, 4, 1), relu_last=False)

    assert [(p.name, p.shape) for p in mlp.parameters] == [
        ("top.0.weight", (5, 4)),
        ("top.0.bias", (4,)),
        ("top.1.weight", (4, 1)),
        ("top.1.bias", (1,)),
    ]


def test_widths_given_replace_the_defaults():
    widths = read_widths("dlrm", {"top_mlp": [3, 2], "bottom_mlp": []}, DEFAULTS)

    assert widths == {"bottom_mlp": (), "top_mlp": (3, 2)}
    assert read_widths("dlrm", {}, DEFAULTS) == DEFAULTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_mpl": [1]}, "model.top_mpl: dlrm has no such option; did you mean 'top_mlp'?"),
        ({"zzz": [1]}, "model.zzz: dlrm has no such option; Known: bottom_mlp, top_mlp"),
        ({"top_mlp": 8}, "model.top_mlp must be a list of layer widths, got 8"),
        ({"top_mlp": "64"}, "model.top_mlp must be a list of layer widths, got '64'"),
        ({"top_mlp": None}, "model.top_mlp must be a list of layer widths, got None"),
        ({"top_mlp": [8, 0]}, "model.top_mlp[1] must be a whole number from 1 to 65536, got 0"),
        ({"top_mlp": [-8]}, "model.top_mlp[0] must be a whole number from 1 to 65536, got -8"),
        ({"top_mlp": [65537]}, "model.top_mlp[0] must be a whole number from 1 to 65536"),
        ({"top_mlp": [8.0]}, "model.top_mlp[0] must be a whole number from 1 to 65536, got 8.0"),
        ({"top_mlp": [True]}, "model.top_mlp[0] must be a whole number from 1 to 65536, got True"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_option_that_is_not_legal_is_named(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read_widths("dlrm", options, DEFAULTS)


@pytest.mark.parametrize("widths", [(3, 1), (7, 64, 16), (40, 100, 260, 1)], ids=str)
def test_predicted_outputs_are_the_same_bits_in_a_batch_of_any_size(widths):
    mlp = Mlp("mlp", widths, relu_last=False)
    rng = np.random.default_rng(len(widths))
    parameters = [rng.normal(size=p.shape).astype(np.float32) for p in mlp.parameters]
    inputs = rng.normal(size=(110, widths[0])).astype(np.float32)
    packed = mlp.packed(parameters)
    whole = mlp.predict(packed, inputs).copy()

    for size in (1, 2, 3, 5, 9, 23, 97):
        parts = [
            mlp.predict(packed, inputs[start : start + size]).copy()
            for start in range(0, len(inputs), size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_allclose(whole, mlp.forward(parameters, inputs), rtol=1e-3, atol=1e-3)


def test_nan_is_predicted_where_a_parameter_is_nan():
    mlp = Mlp("mlp", (2, 16, 1), relu_last=False)
    parameters = [np.ones(p.shape, np.float32) for p in mlp.parameters]
    parameters[0][0, 3] = np.nan

    out = mlp.predict(mlp.packed(parameters), np.ones((3, 2), np.float32))

    assert np.isnan(out).all()
