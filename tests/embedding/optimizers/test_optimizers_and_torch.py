"""Optimizers that torch has too, against torch: every row touched at every step."""

from typing import Any

import numpy as np
import pytest

from embedding.optimizers.rule import rule_for, step_scalars
from embedding.spec.optimizers import Adagrad, Adam, AdamW, RmsProp, Sgd

torch = pytest.importorskip("torch")

LR = 0.05
PAIRS = {
    "sgd": (Sgd(), "SGD", {}),
    "momentum": (Sgd(momentum=0.9), "SGD", {"momentum": 0.9}),
    "nesterov": (
        Sgd(momentum=0.9, nesterov=True),
        "SGD",
        {"momentum": 0.9, "nesterov": True},
    ),
    "l2": (Sgd(l2_regularization=0.1), "SGD", {"weight_decay": 0.1}),
    "adagrad": (
        Adagrad(initial_accumulator=0.1),
        "Adagrad",
        {"initial_accumulator_value": 0.1, "eps": 0.0},
    ),
    "adam": (Adam(epsilon=1e-12), "Adam", {"eps": 1e-12}),
    "adamw": (AdamW(weight_decay=0.1, epsilon=1e-12), "AdamW", {"weight_decay": 0.1, "eps": 1e-12}),
    "rmsprop": (RmsProp(decay=0.95), "RMSprop", {"alpha": 0.95}),
    "rmsprop_momentum": (
        RmsProp(decay=0.95, momentum=0.5, epsilon=0.01),
        "RMSprop",
        {"alpha": 0.95, "momentum": 0.5, "eps": 0.01},
    ),
}


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("spec", "name", "options"), PAIRS.values(), ids=PAIRS.keys())
def test_an_optimizer_does_what_torchs_does(
    spec: Any, name: str, options: dict[str, Any], sparse: bool
) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((8, 16)).astype(np.float32)
    rule = rule_for(spec, sparse=sparse)
    rows = np.hstack([vectors, np.tile(rule.initial_slots(16), (8, 1))])
    parameter = torch.nn.Parameter(torch.from_numpy(vectors.astype(np.float64)))
    optimizer = getattr(torch.optim, name)([parameter], lr=LR, **options)
    for step in range(100):
        gradients = rng.standard_normal((8, 16)).astype(np.float32)
        parameter.grad = torch.from_numpy(gradients.astype(np.float64))
        optimizer.step()
        scalars = step_scalars(spec, learning_rate=LR, step=step)
        rule.update(rows, np.arange(8), gradients, np.float32(1), scalars)

    theirs = parameter.detach().numpy()
    np.testing.assert_allclose(rows[:, :16], theirs, rtol=1e-5, atol=5e-6)


def test_clipping_by_norm_is_torchs_for_each_row() -> None:
    rng = np.random.default_rng(3)
    gradients = (3 * rng.standard_normal((8, 4))).astype(np.float32)
    rule = rule_for(Sgd(clip_norm=2.0), sparse=True)
    rows = np.zeros((8, 4), np.float32)

    rule.update(rows, np.arange(8), gradients, np.float32(1), (1.0,))

    for row, gradient in zip(rows, gradients, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        parameter.grad = torch.from_numpy(gradient.astype(np.float64))
        torch.nn.utils.clip_grad_norm_([parameter], 2.0)
        np.testing.assert_allclose(-row, parameter.grad.numpy(), rtol=1e-6)
