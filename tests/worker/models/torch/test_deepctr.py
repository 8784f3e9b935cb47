"""Models of DeepCTR-Torch, where it is installed: with our vectors they compute what they do."""

import sys
import types
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from torch_models import Tried, make_spec

from worker.models import build_model, parameter_views

torch = pytest.importorskip("torch")
if find_spec("deepctr_torch") is None:
    pytest.skip("DeepCTR-Torch is not installed", allow_module_level=True)
if "deepctr_torch" not in sys.modules:
    # When it is imported it asks its index for a newer version: not from a test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "requests", types.ModuleType("requests"))
        import deepctr_torch

DIMS = {"a": 4, "b": 4, "c": 4}
ADAPTER = "worker.models.torch.deepctr:DeepCtr"
NETWORKS = ("DeepFM", "DCN", "xDeepFM", "AutoInt", "NFM", "WDL", "FiBiNET", "IFM", "DIFM")


def tried(network: str, *, num_dense: int = 3, **options: Any) -> Tried:
    given = {"class": ADAPTER, "network": network, **options}
    return Tried(make_spec(given, num_dense=num_dense, dims=DIMS))


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_and_gradients_are_those_of_the_library_with_its_own_tables(network: str) -> None:
    this = tried(network, dnn_dropout=0.0) if network != "FiBiNET" else tried(network)
    this.model.examine()
    theirs = deepctr_torch.inputs
    dense = [theirs.DenseFeat(f"d{at}", 1) for at in range(3)]
    sparse = [theirs.SparseFeat(name, this.n, embedding_dim=4) for name in DIMS]
    model = getattr(deepctr_torch.models, network)(dense, [*sparse, *dense], task="regression")
    views = parameter_views(this.params, this.model.parameters)
    held = {
        parameter.name.removeprefix("network."): torch.tensor(view)
        for parameter, view in zip(this.model.parameters, views, strict=True)
    }
    # Key i of each feature has the vector that it has in sample i.
    for name, vectors in zip(DIMS, np.split(this.pooled, 3, axis=1), strict=True):
        held[f"embedding_dict.{name}.weight"] = torch.tensor(vectors)
    model.load_state_dict(held)

    keys = np.repeat(np.arange(this.n)[:, None], 3, axis=1)
    logits = model(torch.tensor(np.hstack([this.dense, keys]).astype(np.float32))).squeeze(1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(this.labels), reduction="sum"
    )
    loss.backward()
    got, _, grad_pooled = this.train()

    np.testing.assert_allclose(this.predict(), logits.detach(), rtol=1e-4, atol=1e-5)
    assert got == pytest.approx(loss.item(), rel=1e-5)
    grads = [model.embedding_dict[name].weight.grad.numpy() for name in DIMS]
    np.testing.assert_allclose(grad_pooled, np.hstack(grads), rtol=1e-3, atol=1e-6)


def test_it_begins_by_the_seed_of_the_job() -> None:
    one, other = tried("DCN"), tried("DCN")

    np.testing.assert_array_equal(one.params, other.params)
    assert (one.model.initial_values(6) != one.params).any()


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        ("DeepMF", {}, "is no model of DeepCTR-Torch; did you mean 'DeepFM'"),
        ("PNN", {}, "'PNN' takes other columns than most"),
        ("ONN", {}, "'ONN' looks keys up in tables of its own"),
        ("DeepFM", {"dnn_use_bn": True}, r"training changes buffer .*BatchNorm1d.*LayerNorm"),
        ("DeepFM", {"hidden": 3}, "unexpected keyword argument 'hidden'"),
    ],
)
def test_what_does_not_fit_is_told(network: str, options: dict[str, Any], said: str) -> None:
    given = {"class": ADAPTER, "network": network, **options}
    with pytest.raises(ValueError, match=said):
        build_model(make_spec(given, num_dense=3, dims=DIMS)).examine()
