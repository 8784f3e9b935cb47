"""Weights that follow the names of their inputs: the same logits whatever the features' order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from worker.models import SampleVectors, build_model, initial_parameters, needed_lookups
from worker.models.inputs import input_names, sources_of
from worker.spec import FeatureSpec, ModelSpec, SparseFeature

WIDTHS: dict[str, dict[str, Any]] = {
    "dlrm": {"bottom_mlp": [5], "top_mlp": [6]},
    "wide_deep": {"mlp": [6, 3]},
    "deepfm": {"mlp": [6, 3]},
    "linear": {},
}
DIM = 4


class Features:
    """Features in an order, and the model that takes them."""

    def __init__(self, kind: str, dense: str, sparse: str, **options: Any) -> None:
        self.dense, self.sparse = dense, sparse
        self.features = FeatureSpec(
            label=None,
            dense=tuple(dense),
            dense_transform="none",
            sparse=tuple(SparseFeature(name=name, column=name, table=name) for name in sparse),
        )
        widths = {**WIDTHS[kind], **options}
        dims = dict.fromkeys(sparse, 1 if kind == "linear" else DIM)
        lookups = needed_lookups(kind, widths, self.features.sparse, dims)
        self.spec = ModelSpec(
            type=kind, options=widths, optimizer=Sgd(), num_dense=len(dense), lookups=lookups
        )
        self.model = build_model(self.spec)

    def names(self) -> Any:
        return input_names(self.spec, self.features)

    def logits(self, parameters: np.ndarray) -> np.ndarray:
        """Of samples whose features have values by their names."""
        rng = np.random.default_rng(0)
        values = {name: rng.normal(size=7) for name in "xyz"}
        vectors = {(name, d): rng.normal(size=(7, d)) for name in "abc" for d in (DIM, 1)}
        dense = np.array([values[name] for name in self.dense]).reshape(len(self.dense), 7).T
        pooled = [vectors[self.sparse[each.feature], each.dim] for each in self.spec.lookups]
        inputs: Any = np.ascontiguousarray(np.hstack(pooled), np.float32)
        if getattr(self.model, "reads_vectors", False):
            columns = [each.column for each in self.spec.lookups]
            places = np.empty((len(columns), 7), np.int64)
            inputs = SampleVectors.of_pooled(inputs, columns, places)
        return self.model.predict(parameters, np.ascontiguousarray(dense, np.float32), inputs)


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize(("dense", "sparse"), [("zxy", "abc"), ("xyz", "cab"), ("yxz", "bca")])
def test_a_model_whose_features_are_in_another_order_gives_the_same_logits(
    kind: str, dense: str, sparse: str
) -> None:
    before, after = Features(kind, "xyz", "abc"), Features(kind, dense, sparse)
    parameters = initial_parameters(before.model, 1)
    parameters += np.random.default_rng(1).normal(0, 0.1, parameters.size).astype(np.float32)

    sources, anew = sources_of(
        before.model.parameters, before.names(), after.model.parameters, after.names()
    )

    assert anew == []
    assert sorted(sources) == list(range(parameters.size))
    right, moved = before.logits(parameters), after.logits(parameters[sources])
    np.testing.assert_allclose(moved, right, rtol=2e-5, atol=1e-6)
    stayed = np.array_equal(sources, np.arange(sources.size))
    assert stayed or np.abs(after.logits(parameters) - right).max() > 0.01
    assert not stayed or (kind, dense) == ("linear", "xyz"), "of keys it has no dense weights"


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("dlrm", ["1 of 3 inputs of bottom.0.weight", "3 of 10 inputs of top.0.weight"]),
        ("wide_deep", ["1 of 3 inputs of linear.weight", "5 of 15 inputs of mlp.0.weight"]),
        ("linear", ["1 of 3 inputs of linear.weight"]),
    ],
)
def test_a_new_feature_begins_anew_and_one_that_is_gone_is_left_out(
    kind: str, lost: list[str]
) -> None:
    small, large = Features(kind, "xy", "ab"), Features(kind, "xzy", "acb")

    sources, anew = sources_of(
        small.model.parameters, small.names(), large.model.parameters, large.names()
    )
    back, nothing = sources_of(
        large.model.parameters, large.names(), small.model.parameters, small.names()
    )

    assert (anew, nothing) == (lost, [])
    assert sources[back].tolist() == list(range(back.size)), "there and back again"
    assert sorted(sources[sources >= 0]) == list(range(back.size))


def test_a_bottom_that_was_not_there_begins_anew() -> None:
    before, after = Features("dlrm", "", "ab"), Features("dlrm", "x", "ab")

    sources, anew = sources_of(
        before.model.parameters, before.names(), after.model.parameters, after.names()
    )

    assert anew == [
        "bottom.0.weight", "bottom.0.bias", "bottom.1.weight", "bottom.1.bias",
        "6 of 7 inputs of top.0.weight",
    ]  # fmt: skip
    assert (sources >= 0).sum() == before.spec.options["top_mlp"][0] * 2 + 6 + 1


def test_other_widths_are_refused() -> None:
    before, after = Features("wide_deep", "x", "a"), Features("wide_deep", "x", "a", mlp=[7, 3])

    with pytest.raises(ValueError, match=r"mlp.0.weight has shape \[5, 6\].* \[5, 7\] in the job"):
        sources_of(before.model.parameters, before.names(), after.model.parameters, after.names())


def test_nobody_knows_the_inputs_of_a_custom_model() -> None:
    features = Features("dlrm", "x", "ab")

    assert input_names(replace(features.spec, type="custom"), features.features) is None
