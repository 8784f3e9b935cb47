import dataclasses

import numpy as np
import pytest

from embedding.spec.initial_values import Constant, Normal, TruncatedNormal, Uniform
from embedding.spec.optimizers import Sgd
from worker.models import (
    Parameter,
    build_model,
    initial_parameters,
    needed_lookups,
    num_parameters,
    parameter_views,
)
from worker.spec import Lookup, ModelSpec, SparseFeature

SPARSE = [
    SparseFeature(name="item", column="item", table="items"),
    SparseFeature(name="user", column="user", table="users"),
    SparseFeature(name="history", column="history", table="items"),
]
SMALL = {
    "dlrm": {"bottom_mlp": [4], "top_mlp": [4]},
    "deepfm": {"mlp": [4]},
    "wide_deep": {"mlp": [4]},
}


def make_spec(model_type, **changes):
    options = SMALL[model_type]
    lookups = needed_lookups(model_type, options, SPARSE, {"items": 4, "users": 4})
    spec = ModelSpec(
        type=model_type, options=options, optimizer=Sgd(), num_dense=2, lookups=lookups
    )
    return dataclasses.replace(spec, **changes)


def test_dlrm_needs_one_lookup_for_each_feature():
    assert needed_lookups("dlrm", {}, SPARSE, {"items": 4, "users": 4}) == (
        Lookup(feature=0, table="items", dim=4, column=0),
        Lookup(feature=1, table="users", dim=4, column=4),
        Lookup(feature=2, table="items", dim=4, column=8),
    )


@pytest.mark.parametrize("model_type", ["deepfm", "wide_deep"])
def test_first_order_lookups_follow_those_of_embeddings(model_type):
    lookups = needed_lookups(model_type, {}, SPARSE, {"items": 4, "users": 4})

    assert [lookup.table for lookup in lookups[:3]] == ["items", "users", "items"]
    assert lookups[3:] == (
        Lookup(feature=0, table="items_linear", dim=1, column=12),
        Lookup(feature=1, table="users_linear", dim=1, column=13),
        Lookup(feature=2, table="items_linear", dim=1, column=14),
    )


def test_tables_of_wide_deep_may_differ_in_dim():
    lookups = needed_lookups("wide_deep", {}, SPARSE, {"items": 4, "users": 1})

    assert [lookup.column for lookup in lookups] == [0, 4, 5, 9, 10, 11]


def test_a_first_order_table_has_dim_1_whatever_the_default_is():
    dims = {"items": 4, "users": 4, "items_linear": 4}

    assert needed_lookups("deepfm", {}, SPARSE, dims)[3].dim == 1


@pytest.mark.parametrize("model_type", ["dlrm", "deepfm"])
def test_tables_that_differ_in_dim_are_refused_by_name(model_type):
    with pytest.raises(ValueError, match=r"same dim, got \{'items': 4, 'users': 8\}"):
        needed_lookups(model_type, {}, SPARSE, {"items": 4, "users": 8})


@pytest.mark.parametrize("model_type", ["dlrm", "deepfm"])
def test_a_model_of_pairs_without_sparse_features_is_refused(model_type):
    with pytest.raises(ValueError, match=f"{model_type} needs a sparse feature, got none"):
        needed_lookups(model_type, {}, [], {})


def test_a_table_without_a_dim_is_named():
    with pytest.raises(ValueError, match="'user' names table 'users', which has no dim"):
        needed_lookups("dlrm", {}, SPARSE, {"items": 4})


def test_a_linear_model_has_one_weight_for_each_key_in_the_features_own_tables():
    lookups = needed_lookups("linear", {}, SPARSE, {"items": 1, "users": 1})

    assert [lookup.table for lookup in lookups] == ["items", "users", "items"]
    assert [lookup.column for lookup in lookups] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'items' has dim 16: set embedding.dim to 1"):
        needed_lookups("linear", {}, SPARSE, {"items": 16, "users": 1})
    with pytest.raises(ValueError, match=r"model.mlp: linear has no such option; it has none"):
        needed_lookups("linear", {"mlp": [4]}, SPARSE, {"items": 1, "users": 1})


def test_a_name_kept_for_first_order_weights_is_refused_where_they_are_used():
    sparse = [SparseFeature(name="x", column="x", table="x_linear")]

    with pytest.raises(ValueError, match="rename the table"):
        needed_lookups("wide_deep", {}, sparse, {"x_linear": 4})
    assert len(needed_lookups("dlrm", {}, sparse, {"x_linear": 4})) == 1


def test_options_are_checked_with_the_lookups():
    with pytest.raises(ValueError, match="did you mean 'top_mlp'"):
        needed_lookups("dlrm", {"top_mpl": [4]}, SPARSE, {"items": 4, "users": 4})


def test_an_unknown_type_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="'deep_fm' is not known; did you mean 'deepfm'"):
        needed_lookups("deep_fm", {}, SPARSE, {"items": 4, "users": 4})
    with pytest.raises(ValueError, match="Known: dlrm, deepfm, wide_deep, linear, custom"):
        build_model(make_spec("dlrm", type="zzz"))


def test_lookups_that_do_not_lie_side_by_side_are_refused():
    spec = make_spec("dlrm")
    moved = dataclasses.replace(spec.lookups[1], column=5)

    with pytest.raises(ValueError, match="'users' begins at column 5, expected 4"):
        build_model(dataclasses.replace(spec, lookups=(spec.lookups[0], moved)))


def test_first_order_lookups_before_others_are_refused():
    lookups = (
        Lookup(feature=0, table="items_linear", dim=1, column=0),
        Lookup(feature=0, table="items", dim=4, column=1),
    )

    with pytest.raises(ValueError, match="first-order lookups after all others"):
        build_model(make_spec("wide_deep", lookups=lookups))


def test_a_model_without_input_is_refused():
    with pytest.raises(ValueError, match="no input"):
        build_model(make_spec("wide_deep", lookups=(), num_dense=0))
    with pytest.raises(ValueError, match="got 0 dense and 1 sparse"):
        build_model(make_spec("dlrm", lookups=make_spec("dlrm").lookups[:1], num_dense=0))


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("dlrm", "bottom_mlp"), ("dlrm", "top_mlp"), ("deepfm", "mlp"), ("wide_deep", "mlp")],
)
def test_every_option_changes_the_model(model_type, name):
    spec = make_spec(model_type)
    wider = {**spec.options, name: [9]}

    assert num_parameters(build_model(spec)) < num_parameters(
        build_model(dataclasses.replace(spec, options=wider))
    )


@pytest.mark.parametrize("model_type", SMALL)
def test_initial_parameters_are_those_of_the_seed(model_type):
    model = build_model(make_spec(model_type))

    first = initial_parameters(model, 1)

    assert first.dtype == np.float32
    assert first.shape == (num_parameters(model),)
    np.testing.assert_array_equal(first, initial_parameters(model, 1))
    assert (first != initial_parameters(model, 2)).any()


@pytest.mark.parametrize("model_type", SMALL)
def test_weights_start_glorot_uniform_and_biases_at_0(model_type):
    model = build_model(make_spec(model_type))

    views = parameter_views(initial_parameters(model, 1), model.parameters)

    for parameter, values in zip(model.parameters, views, strict=True):
        if parameter.name.endswith(".bias") or parameter.name == "linear.weight":
            np.testing.assert_array_equal(values, 0)
        else:
            limit = np.sqrt(6 / sum(parameter.shape))
            assert 0.5 * limit < np.abs(values).max() <= limit * (1 + 1e-6)


class OfParameters:
    def __init__(self, *parameters):
        self.parameters = parameters


def test_each_initializer_draws_from_its_distribution():
    model = OfParameters(
        Parameter("constant", (2000,), Constant(value=3)),
        Parameter("uniform", (2000,), Uniform(scale=2)),
        Parameter("normal", (2000,), Normal(mean=5, stddev=2)),
        Parameter("truncated", (2000,), TruncatedNormal(mean=5, stddev=2)),
    )

    constant, uniform, normal, truncated = initial_parameters(model, 0).reshape(4, 2000)

    assert (constant == 3).all()
    assert 1.9 < uniform.max() <= 2
    assert -2 <= uniform.min() < -1.9
    assert normal.mean() == pytest.approx(5, abs=0.2)
    assert normal.std() == pytest.approx(2, abs=0.2)
    assert np.abs(normal - 5).max() > 4 >= np.abs(truncated - 5).max() > 3.5


def test_views_lie_in_the_flat_vector_in_order():
    parameters = (Parameter("a", (2, 3)), Parameter("none", (0,)), Parameter("b", (2,)))
    flat = np.arange(8, dtype=np.float32)

    a, none, b = parameter_views(flat, parameters)
    b[1] = 70

    np.testing.assert_array_equal(a, [[0, 1, 2], [3, 4, 5]])
    assert none.shape == (0,)
    assert flat[7] == 70


def test_a_vector_of_another_length_is_not_cut_into_views():
    with pytest.raises(AssertionError, match="9 values, the parameters 8"):
        parameter_views(np.empty(9, np.float32), (Parameter("a", (8,)),))
