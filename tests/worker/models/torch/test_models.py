"""Models that we wrote in torch: published formulas, gradients, and our own DLRM."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch_models import Tried, make_spec

from worker.models import SampleVectors, build_model, parameter_views

torch = pytest.importorskip("torch")

ALIKE = {"a": 4, "b": 4, "c": 4}
UNLIKE = {"a": 4, "b": 2}
DLRM = "worker.models.torch.dlrm:Dlrm"
DCN = "worker.models.torch.dcn:DcnV2"
CASES: dict[str, tuple[dict[str, Any], int, dict[str, int]]] = {
    "dlrm": ({"class": DLRM, "bottom_mlp": [6, 5], "top_mlp": [7]}, 3, ALIKE),
    "dlrm without dense": ({"class": DLRM, "top_mlp": [7, 3]}, 0, ALIKE),
    "dlrm of one pair": ({"class": DLRM, "bottom_mlp": [], "top_mlp": []}, 2, {"a": 3}),
    "dcn stacked": ({"class": DCN, "cross_layers": 2, "mlp": [5, 4]}, 3, UNLIKE),
    "dcn parallel": ({"class": DCN, "mlp": [5], "structure": "parallel"}, 3, UNLIKE),
    "dcn of low rank": ({"class": DCN, "cross_layers": 2, "rank": 2, "mlp": [5]}, 3, UNLIKE),
    "dcn of crosses alone": ({"class": DCN, "cross_layers": 1, "mlp": []}, 0, UNLIKE),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Tried:
    options, num_dense, dims = CASES[request.param]
    tried = Tried(make_spec(options, num_dense=num_dense, dims=dims), n=6)
    # Away from 0, where biases begin and a unit of ReLU may have no slope.
    tried.params += np.random.default_rng(2).normal(0, 0.1, tried.params.size).astype(np.float32)
    return tried


class Formula:
    """The logits, in float64, from the definitions and the parameters by name."""

    def __init__(self, tried: Tried) -> None:
        self.options = tried.spec.options
        self.dims = tried.spec.lookup_names
        self.widths = [lookup.dim for lookup in tried.spec.lookups]
        self.parameters = tried.model.parameters

    def __call__(self, params: np.ndarray, dense: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        views = parameter_views(params, self.parameters)
        self.of = {p.name: view for p, view in zip(self.parameters, views, strict=True)}
        logits = self.dlrm if self.options["class"] == DLRM else self.dcn
        return logits(dense, pooled)

    def layers(self, prefix: str, x: np.ndarray, count: int, relu_last: bool) -> np.ndarray:
        for at in range(count):
            x = x @ self.of[f"{prefix}.{at}.weight"].T + self.of[f"{prefix}.{at}.bias"]
            if relu_last or at < count - 1:
                x = np.maximum(x, 0)
        return x

    def dlrm(self, dense: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        n = len(pooled)
        vectors, first = pooled.reshape(n, len(self.widths), -1), np.zeros((n, 0))
        if dense.shape[1]:
            first = self.layers("bottom", dense, len(self.options["bottom_mlp"]) + 1, True)
            vectors = np.concatenate([first[:, None], vectors], axis=1)
        pairs = [(i, j) for i in range(vectors.shape[1]) for j in range(i)]
        dots = np.stack([(vectors[:, i] * vectors[:, j]).sum(axis=1) for i, j in pairs], axis=1)
        top = np.concatenate([first, dots], axis=1)
        return self.layers("top", top, len(self.options["top_mlp"]) + 1, False)[:, 0]

    def dcn(self, dense: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        x0 = x = np.concatenate([dense, pooled], axis=1)
        for at in range(self.options.get("cross_layers", 3)):
            weight = self.of[f"cross.{at}.linear.weight"]
            if "rank" in self.options:
                weight = weight @ self.of[f"cross.{at}.down.weight"]
            x = x0 * (x @ weight.T + self.of[f"cross.{at}.linear.bias"]) + x
        deep = len(self.options["mlp"])
        if deep and self.options.get("structure", "stacked") == "stacked":
            x = self.layers("deep", x, deep, True)
        elif deep:
            x = np.concatenate([x, self.layers("deep", x0, deep, True)], axis=1)
        return self.layers("logit", x, 1, False)[:, 0]


def test_logits_and_gradients_are_those_of_the_formula(case: Tried) -> None:
    formula = Formula(case)
    params, dense, pooled = (
        array.astype(np.float64) for array in (case.params, case.dense, case.pooled)
    )

    def loss() -> float:
        z = formula(params, dense, pooled)
        return float((case.weights * (np.logaddexp(0, z) - case.labels * z)).sum())

    def difference(vector: np.ndarray, at: int, step: float = 1e-6) -> float:
        kept = vector.flat[at]
        losses = []
        for vector.flat[at] in (kept + step, kept - step):
            losses.append(loss())
        vector.flat[at] = kept
        return (losses[0] - losses[1]) / (2 * step)

    got, grad_params, grad_pooled = case.train(case.weights)

    np.testing.assert_allclose(case.predict(), formula(params, dense, pooled), rtol=1e-4, atol=1e-5)
    assert got == pytest.approx(loss(), rel=1e-5)
    by_params = [difference(params, at) for at in range(params.size)]
    by_pooled = [difference(pooled, at) for at in range(pooled.size)]
    np.testing.assert_allclose(grad_params, by_params, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(grad_pooled.ravel(), by_pooled, rtol=2e-3, atol=2e-5)


def test_in_bf16_samples_keep_logits_of_their_own() -> None:
    options = {"class": DLRM, "bottom_mlp": [16], "top_mlp": [16]}
    exact = Tried(make_spec(options, num_dense=3, dims=ALIKE), n=2000)
    rounded = Tried(make_spec({**options, "precision": "bf16"}, num_dense=3, dims=ALIKE), n=2000)

    assert np.unique(rounded.predict()).size > 0.9 * np.unique(exact.predict()).size
    np.testing.assert_allclose(rounded.predict(), exact.predict(), atol=0.02)


def test_a_job_would_take_it(case: Tried) -> None:
    case.model.examine()


def test_dlrm_is_that_of_numpy() -> None:
    n = 300
    options = {"bottom_mlp": [64, 32], "top_mlp": [64, 32]}
    dims = {f"C{at}": 16 for at in range(26)}
    tried = Tried(make_spec({"class": DLRM, **options}, num_dense=13, dims=dims), n)
    ours = build_model(replace(tried.spec, type="dlrm", options=options, lookup_names=()))
    theirs = parameter_views(tried.params, tried.model.parameters)
    flat = np.concatenate([view.T.ravel() for view in theirs])
    assert [p.name for p in ours.parameters] == [p.name for p in tried.model.parameters]
    grad_params = np.empty_like(flat)
    grad_pooled = np.zeros_like(tried.pooled)
    vectors = SampleVectors.of_pooled(
        tried.pooled, [16 * at for at in range(26)], np.empty((26, n), np.int64)
    )

    loss = ours.train(
        flat, tried.dense, vectors, tried.labels, grad_params, grad_pooled.reshape(-1)
    )
    got, got_params, got_pooled = tried.train()

    assert got == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(
        tried.predict(), ours.predict(flat, tried.dense, vectors), rtol=1e-4, atol=1e-5
    )
    got_params = np.concatenate(
        [view.T.ravel() for view in parameter_views(got_params, tried.model.parameters)]
    )
    scale = np.abs(grad_params).max()
    np.testing.assert_allclose(got_params, grad_params, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(got_pooled, grad_pooled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "dims", "said"),
    [
        ({"class": DLRM}, UNLIKE, "vectors of one dim for all features, got a 4, b 2"),
        ({"class": DLRM, "top_mlp": [0]}, ALIKE, r"model\.top_mlp\[0\] must be a whole number"),
        ({"class": DCN, "rank": 99}, ALIKE, "from 1 to the 15 columns of the inputs, got 99"),
        ({"class": DCN, "cross_layers": 0}, ALIKE, "cross_layers must be a whole number >= 1"),
        ({"class": DCN, "structure": "both"}, ALIKE, "'stacked', 'parallel'.*, got 'both'"),
    ],
)
def test_options_that_are_not_legal_are_named(
    options: dict[str, Any], dims: dict[str, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build_model(make_spec(options, num_dense=3, dims=dims))
