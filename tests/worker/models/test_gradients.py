"""Every model against a float64 reference, and the reference against finite differences."""

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from worker.models import build_model, initial_parameters, needed_lookups, num_parameters
from worker.spec import ModelSpec, SparseFeature


def make_spec(model_type, options, num_dense, dims):
    sparse = [SparseFeature(name=f"s{i}", column=f"s{i}", table=f"t{i}") for i in range(len(dims))]
    lookups = needed_lookups(
        model_type, options, sparse, {f"t{i}": dim for i, dim in enumerate(dims)}
    )
    return ModelSpec(
        type=model_type, options=options, optimizer=Sgd(), num_dense=num_dense, lookups=lookups
    )


CASES = {
    "dlrm": make_spec("dlrm", {"bottom_mlp": [6, 5], "top_mlp": [7]}, 3, [4, 4, 4]),
    "dlrm without dense": make_spec("dlrm", {"top_mlp": [7, 3]}, 0, [4, 4, 4]),
    "dlrm of one pair": make_spec("dlrm", {"bottom_mlp": [], "top_mlp": []}, 2, [3]),
    "deepfm": make_spec("deepfm", {"mlp": [6, 5]}, 3, [4, 4, 4]),
    "deepfm without dense": make_spec("deepfm", {"mlp": [5]}, 0, [1, 1]),
    "wide_deep": make_spec("wide_deep", {"mlp": [6, 5]}, 3, [4, 2, 1]),
    "wide_deep without dense": make_spec("wide_deep", {"mlp": []}, 0, [4, 2]),
    "wide_deep without sparse": make_spec("wide_deep", {"mlp": [4]}, 3, []),
    "linear": make_spec("linear", {}, 3, [1, 1]),
    "linear without dense": make_spec("linear", {}, 0, [1, 1, 1]),
    "linear without sparse": make_spec("linear", {}, 3, []),
}
FULL_SIZE = {
    "dlrm": make_spec("dlrm", {"bottom_mlp": [64, 32], "top_mlp": [64, 32]}, 13, [16] * 26),
    "deepfm": make_spec("deepfm", {"mlp": [64, 32]}, 13, [16] * 26),
    "wide_deep": make_spec("wide_deep", {"mlp": [64, 32]}, 13, [16] * 26),
    "linear": make_spec("linear", {}, 13, [1] * 26),
}


def make_batch(spec, n, seed=0):
    """Inputs and parameters away from 0: (params, dense, pooled, labels), float32."""
    generator = np.random.default_rng(seed)
    model = build_model(spec)
    params = initial_parameters(model, seed)
    params += generator.normal(0, 0.1, len(params)).astype(np.float32)
    dense = generator.normal(size=(n, spec.num_dense)).astype(np.float32)
    pooled = generator.normal(0, 0.5, (n, spec.pooled_width)).astype(np.float32)
    labels = (generator.random(n) < 0.4).astype(np.float32)
    return params, dense, pooled, labels


def train(model, params, dense, pooled, labels):
    """Return (loss, grad_params, grad_pooled); the gradients start as NaN, to show what is left."""
    grad_params = np.full(num_parameters(model), np.nan, np.float32)
    grad_pooled = np.full(pooled.shape, np.nan, np.float32)
    loss = model.train(params, dense, pooled, labels, grad_params, grad_pooled)
    return loss, grad_params, grad_pooled


class Reference:
    """The models from their definitions, in float64, on whole arrays."""

    def __init__(self, spec, params):
        self.spec = spec
        self.is_linear = [lookup.table.endswith("_linear") for lookup in spec.lookups]
        self.width = sum(
            lookup.dim
            for lookup, linear in zip(spec.lookups, self.is_linear, strict=True)
            if not linear
        )
        self.params = np.asarray(params, np.float64)
        self.position = 0

    def take(self, *shape):
        size = int(np.prod(shape))
        values = self.params[self.position : self.position + size].reshape(shape)
        self.position += size
        return values

    def layers(self, x, widths, relu_last):
        tape = []
        for i, width in enumerate(widths):
            weight, bias = self.take(x.shape[1], width), self.take(width)
            z = x @ weight + bias
            relu = relu_last or i < len(widths) - 1
            tape.append((x, weight, z, relu))
            x = np.maximum(z, 0) if relu else z
        return x, tape

    @staticmethod
    def layers_gradient(grad, tape):
        """Return the flat gradient of the parameters, and that of the input."""
        flat = []
        for x, weight, z, relu in reversed(tape):
            grad = grad * (z > 0) if relu else grad
            flat = [np.einsum("ni,nj->ij", x, grad).ravel(), grad.sum(axis=0), *flat]
            grad = grad @ weight.T
        return flat, grad

    def run(self, dense, pooled, labels):
        """Return (loss, logits, grad_params, grad_pooled)."""
        self.position = 0
        dense, pooled = np.asarray(dense, np.float64), np.asarray(pooled, np.float64)
        forward = {"dlrm": self.dlrm, "linear": self.linear}.get(self.spec.type, self.wide)
        logits, backward = forward(dense, pooled)
        assert self.position == len(self.params)
        loss = np.sum(np.logaddexp(0, logits) - labels * logits)
        flat, grad_pooled = backward(1 / (1 + np.exp(-logits)) - labels)
        return loss, logits, np.concatenate(flat), grad_pooled

    def dlrm(self, dense, pooled):
        n, dim = len(pooled), self.spec.lookups[0].dim
        vectors, tape = pooled.reshape(n, -1, dim), []
        passed = np.zeros((n, 0))
        if self.spec.num_dense:
            widths = [*self.spec.options["bottom_mlp"], dim]
            passed, tape = self.layers(dense, widths, relu_last=True)
            vectors = np.concatenate([passed[:, None], vectors], axis=1)
        rows, columns = np.tril_indices(vectors.shape[1], -1)
        dots = np.einsum("nik,njk->nij", vectors, vectors)[:, rows, columns]
        top_inputs = np.concatenate([passed, dots], axis=1)
        out, top_tape = self.layers(top_inputs, [*self.spec.options["top_mlp"], 1], relu_last=False)

        def backward(grad):
            top, grad = self.layers_gradient(grad[:, None], top_tape)
            grad_passed, grad_dots = np.split(grad, [passed.shape[1]], axis=1)
            grad_vectors = np.zeros_like(vectors)
            for pair, (i, j) in enumerate(zip(rows, columns, strict=True)):
                grad_vectors[:, i] += grad_dots[:, [pair]] * vectors[:, j]
                grad_vectors[:, j] += grad_dots[:, [pair]] * vectors[:, i]
            if not tape:
                return top, grad_vectors.reshape(n, -1)
            bottom, _ = self.layers_gradient(grad_passed + grad_vectors[:, 0], tape)
            return [*bottom, *top], grad_vectors[:, 1:].reshape(n, -1)

        return out[:, 0], backward

    def linear(self, dense, pooled):
        weight, bias = self.take(self.spec.num_dense), self.take(1)

        def backward(grad):
            return [dense.T @ grad, grad.sum(keepdims=True)], np.outer(
                grad, np.ones(pooled.shape[1])
            )

        return pooled.sum(axis=1) + dense @ weight + bias, backward

    def wide(self, dense, pooled):
        """Wide & Deep, and for deepfm the sum over all pairs of embeddings."""
        n, width = len(pooled), self.width
        wide = self.take(self.spec.num_dense)
        inputs = np.concatenate([pooled[:, :width], dense], axis=1)
        out, tape = self.layers(inputs, [*self.spec.options["mlp"], 1], relu_last=False)
        logits = out[:, 0] + pooled[:, width:].sum(axis=1) + dense @ wide
        count = len(self.spec.lookups) - sum(self.is_linear)
        pairs = self.spec.type == "deepfm"
        if pairs:
            vectors = pooled[:, :width].reshape(n, count, -1)
            for i in range(count):
                for j in range(i):
                    logits = logits + np.einsum("nk,nk->n", vectors[:, i], vectors[:, j])

        def backward(grad):
            flat, grad_inputs = self.layers_gradient(grad[:, None], tape)
            grad_pooled = np.repeat(grad[:, None], pooled.shape[1], axis=1)
            grad_pooled[:, :width] = grad_inputs[:, :width]
            if pairs:
                others = vectors.sum(axis=1, keepdims=True) - vectors
                grad_pooled[:, :width] += (grad[:, None, None] * others).reshape(n, -1)
            return [dense.T @ grad, *flat], grad_pooled

        return logits, backward


@pytest.fixture(params=CASES)
def spec(request):
    return CASES[request.param]


def test_the_reference_gradient_equals_finite_differences(spec):
    params, dense, pooled, labels = (x.astype(np.float64) for x in make_batch(spec, 3))
    _, _, grad_params, grad_pooled = Reference(spec, params).run(dense, pooled, labels)
    step = 1e-6

    def difference(vector, i):
        kept = vector.flat[i]
        losses = []
        for value in (kept + step, kept - step):
            vector.flat[i] = value
            losses.append(Reference(spec, params).run(dense, pooled, labels)[0])
        vector.flat[i] = kept
        return (losses[0] - losses[1]) / (2 * step)

    by_params = [difference(params, i) for i in range(params.size)]
    by_pooled = [difference(pooled, i) for i in range(pooled.size)]
    np.testing.assert_allclose(grad_params, by_params, atol=1e-7)
    np.testing.assert_allclose(grad_pooled.ravel(), by_pooled, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_a_model_equals_the_reference(spec, n, pooled_model):
    params, dense, pooled, labels = make_batch(spec, n)
    loss, logits, grad_params, grad_pooled = Reference(spec, params).run(dense, pooled, labels)
    model = pooled_model(spec)

    got_loss, got_params, got_pooled = train(model, params, dense, pooled, labels)

    assert got_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(got_params, grad_params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got_pooled, grad_pooled, rtol=1e-4, atol=1e-5)
    predicted = model.predict(params, dense, pooled)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_model_of_full_width_equals_the_reference(name, pooled_model):
    spec = FULL_SIZE[name]
    params, dense, pooled, labels = make_batch(spec, 300)
    loss, _, grad_params, grad_pooled = Reference(spec, params).run(dense, pooled, labels)

    got_loss, got_params, got_pooled = train(pooled_model(spec), params, dense, pooled, labels)

    assert got_loss == pytest.approx(loss, rel=1e-5)
    scale = np.abs(grad_params).max()
    np.testing.assert_allclose(got_params, grad_params, rtol=1e-3, atol=1e-6 * scale)
    np.testing.assert_allclose(got_pooled, grad_pooled, rtol=1e-3, atol=1e-5)
