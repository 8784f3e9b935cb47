"""Every optimizer and option against formulas written anew in float64, and DeepRec's numbers."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from embedding.optimizers.rule import rule_for, step_scalars
from embedding.spec.json_form import optimizer_from_json, to_json
from embedding.spec.optimizers import (
    OPTIMIZERS,
    Adagrad,
    AdagradDecay,
    AdagradDecayV2,
    Adam,
    AdamAsync,
    AdamW,
    Ftrl,
    RmsProp,
    RowwiseAdagrad,
    RowwiseAdam,
    Sgd,
)
from embedding.spec.schedule import Schedule

CASES = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.9),
    "nesterov": Sgd(momentum=0.8, nesterov=True),
    "adagrad": Adagrad(),
    "rowwise_adagrad": RowwiseAdagrad(initial_accumulator=0.5),
    "adagrad_decay": AdagradDecay(decay_steps=3, decay_rate=0.7),
    "adagrad_decay_one": AdagradDecay(decay_steps=3, decay_rate=0.7, catch_up="one_period"),
    "adagrad_decay_v2": AdagradDecayV2(decay_steps=3, decay_rate=0.7),
    "adam": Adam(),
    "adam_async": AdamAsync(),
    "adam_async_rmsprop": AdamAsync(apply_sparse_rmsprop=True),
    "adamw": AdamW(weight_decay=0.1),
    "adamw_unscaled": AdamW(weight_decay=0.01, decay_scaling="none"),
    "adamw_corrected": AdamW(weight_decay=0.1, decay_scaling="corrected"),
    "rowwise_adam": RowwiseAdam(),
    "rmsprop": RmsProp(),
    "rmsprop_momentum": RmsProp(momentum=0.9, decay=0.99),
    "ftrl": Ftrl(l1=0.5, l2=0.1),
    "ftrl_coordinate": Ftrl(l1=0.5, l2=0.1, lasso="coordinate"),
    "ftrl_shrinkage": Ftrl(l2_shrinkage=0.3, learning_rate_power=-0.4),
    "clipped": Adagrad(clip_value=0.5, clip_norm=1.0, l2_regularization=0.05),
    "regularised": Sgd(l2_regularization=0.1),
    "scheduled": Sgd(schedule=Schedule(type="cosine", decay_steps=9)),
}
each_case = pytest.mark.parametrize("spec", CASES.values(), ids=CASES.keys())


class Reference:
    """One row in float64, from the formulas of docs/embedding.md."""

    def __init__(self, spec: Any, vector: np.ndarray, *, sparse: bool) -> None:
        self.spec, self.sparse = spec, sparse
        self.w = vector.astype(np.float64)
        zeros = np.zeros_like(self.w)
        self.m, self.v, self.b, self.z, self.period = zeros, zeros, zeros, zeros, 0
        self.a = zeros + getattr(spec, "initial_accumulator", 0.0)

    def update(self, g: np.ndarray, *, lr: float, step: int, clock: int) -> None:
        s = self.spec
        g = g.astype(np.float64)
        if s.clip_value is not None:
            g = np.clip(g, -s.clip_value, s.clip_value)
        if s.clip_norm is not None and np.linalg.norm(g) > s.clip_norm:
            g = g * s.clip_norm / np.linalg.norm(g)
        g = g + s.l2_regularization * self.w
        family = s.type.removeprefix("rowwise_").removesuffix("_v2")
        getattr(self, family)(g, lr, step + 1, clock)

    def of_row(self, squares: np.ndarray) -> np.ndarray:
        row = self.sparse and self.spec.type.startswith("rowwise_")
        return np.full_like(squares, squares.mean()) if row else squares

    def sgd(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        mu = self.spec.momentum
        self.b = mu * self.b + g
        self.w = self.w - lr * (g + mu * self.b if self.spec.nesterov else self.b)

    def adagrad(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        self.a = self.a + self.of_row(g**2)
        self.w = self.w - lr * g / np.sqrt(self.a)

    def adagrad_decay(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        now = (clock + 1) // s.decay_steps
        while self.period < now:
            self.a = np.maximum(self.a * s.decay_rate, s.initial_accumulator)
            self.period += 1
            if s.catch_up == "one_period":
                break
        self.adagrad(g, lr, t, clock)

    def adam(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        self.m = self.m + (g - self.m) * (1 - s.beta1)
        self.v = self.v + (self.of_row(g**2) - self.v) * (1 - s.beta2)
        alpha = lr * np.sqrt(1 - s.beta2**t) / (1 - s.beta1**t)
        self.w = self.w - alpha * self.m / (np.sqrt(self.v) + s.epsilon)

    def adam_async(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        if not (s.apply_sparse_rmsprop and self.sparse):
            return self.adam(g, lr, t, clock)
        self.v = s.beta2 * self.v + (1 - s.beta2) * g**2
        self.m = s.beta1 * self.m + lr * g / np.sqrt(self.v + s.epsilon)
        self.w = self.w - self.m

    def adamw(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        alpha = lr * np.sqrt(1 - s.beta2**t) / (1 - s.beta1**t)
        of = {"learning_rate": lr, "none": 1.0, "corrected": alpha}[s.decay_scaling]
        before = self.w
        self.adam(g, lr, t, clock)
        self.w = self.w - of * s.weight_decay * before

    def rmsprop(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        self.v = s.decay * self.v + (1 - s.decay) * g**2
        self.b = s.momentum * self.b + g / (np.sqrt(self.v) + s.epsilon)
        self.w = self.w - lr * self.b

    def ftrl(self, g: np.ndarray, lr: float, t: int, clock: int) -> None:
        s = self.spec
        p = -s.learning_rate_power
        n = self.a + g**2
        sigma = (n**p - self.a**p) / lr
        self.z = self.z + g + 2 * s.l2_shrinkage * self.w - sigma * self.w
        self.a = n
        row = self.sparse and s.lasso == "row"
        size = np.sqrt((self.z**2).sum()) if row else np.abs(self.z)
        left = np.maximum(size - s.l1, 0) / np.maximum(size, 1e-300)
        self.w = -self.z * left / (n**p / lr + 2 * s.l2)


def new_rows(spec: Any, vectors: Any, *, sparse: bool = True) -> np.ndarray:
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    slots = rule_for(spec, sparse=sparse).initial_slots(vectors.shape[1])
    return np.hstack([vectors, np.tile(slots, (len(vectors), 1))])


@each_case
@pytest.mark.parametrize("sparse", [True, False])
def test_many_steps_are_those_of_the_formulas(spec: Any, sparse: bool) -> None:
    if not sparse:
        spec = replace(spec, clip_norm=None)
    rng = np.random.default_rng(4)
    dim, num_rows = 5, 6
    vectors = rng.standard_normal((num_rows, dim)).astype(np.float32)
    rows = new_rows(spec, vectors, sparse=sparse)
    exact = [Reference(spec, vector, sparse=sparse) for vector in vectors]
    rule = rule_for(spec, sparse=sparse)
    for step in range(60):
        lr, clock = 0.03 / (1 + step / 20), step // 2
        # Rows that are left out for a while, and one that is never touched.
        positions = rng.permutation(num_rows - 1)[: 1 + step % 4]
        gradients = rng.standard_normal((len(positions), dim)).astype(np.float32)
        scalars = step_scalars(spec, learning_rate=lr, step=step, clock=clock)

        rule.update(rows, positions, gradients, np.float32(0.5), scalars)

        for position, gradient in zip(positions, gradients, strict=True):
            exact[position].update(gradient * 0.5, lr=lr, step=step, clock=clock)

    expected = np.array([row.w for row in exact])
    np.testing.assert_allclose(rows[:, :dim], expected, rtol=2e-5, atol=5e-6)
    assert np.array_equal(rows[-1], new_rows(spec, vectors[-1], sparse=sparse)[0])
    assert not np.allclose(rows[:-1, :dim], vectors[:-1], atol=1e-3)


@each_case
def test_what_is_left_out_stays_as_it_is(spec: Any) -> None:
    rows = new_rows(spec, np.ones((3, 4)))
    before = rows.copy()
    scalars = step_scalars(spec, learning_rate=0.1, step=0)

    gradients = np.ones((2, 4), np.float32)
    rule_for(spec, sparse=True).update(rows, np.array([-1, 1]), gradients, 1.0, scalars)

    assert np.array_equal(rows[[0, 2]], before[[0, 2]])
    assert not np.array_equal(rows[1], before[1])


@each_case
def test_a_row_gets_the_same_bits_beside_any_others(spec: Any) -> None:
    rng = np.random.default_rng(8)
    vectors = rng.standard_normal((40, 7)).astype(np.float32)
    gradients = rng.standard_normal((40, 7)).astype(np.float32)
    rule = rule_for(spec, sparse=True)
    together, alone = new_rows(spec, vectors), new_rows(spec, vectors)
    for step in range(4):
        scalars = step_scalars(spec, learning_rate=0.05, step=step, clock=step)
        rule.update(together, np.arange(40), gradients, np.float32(1 / 3), scalars)
        for i in reversed(range(40)):
            rule.update(alone, np.array([i]), gradients[i : i + 1], np.float32(1 / 3), scalars)

    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    "spec", [s for s in CASES.values() if s.clip_norm is None], ids=lambda s: s.type
)
def test_a_dense_parameter_gets_the_same_bits_however_wide_its_block_is(spec: Any) -> None:
    """So a row-wise rule takes a dense parameter for a row of its own."""
    rng = np.random.default_rng(5)
    vector, gradient = rng.standard_normal((2, 256)).astype(np.float32)
    rule = rule_for(spec, sparse=False)
    results = []
    for width in (256, 16, 1):
        rows = new_rows(spec, vector.reshape(-1, width), sparse=False)
        for step in range(3):
            scalars = step_scalars(spec, learning_rate=0.05, step=step, clock=step)
            rule.update(rows, np.arange(len(rows)), gradient.reshape(-1, width), 0.3, scalars)
        results.append(rows[:, :width].tobytes())

    assert results[0] == results[1] == results[2]


# Options ------------------------------------------------------------------------------------------

OTHER = {
    "momentum": 0.5,
    "nesterov": True,
    "initial_accumulator": 3.0,
    "decay_steps": 2,
    "decay_rate": 0.3,
    "catch_up": "one_period",
    "beta1": 0.5,
    "beta2": 0.5,
    "epsilon": 0.1,
    "apply_sparse_rmsprop": True,
    "weight_decay": 0.5,
    "decay_scaling": "corrected",
    "decay": 0.5,
    "learning_rate_power": -0.3,
    "l1": 1.0,
    "l2": 1.0,
    "l2_shrinkage": 1.0,
    "lasso": "coordinate",
    "clip_value": 0.1,
    "clip_norm": 0.2,
    "l2_regularization": 0.3,
}
SETTINGS = [
    (kind, field.name)
    for kind, spec in OPTIMIZERS.items()
    for field in fields(spec)
    if field.name not in ("type", "learning_rate", "schedule")  # these act before the kernel
]
# What another option has to be, so that this one can matter.
NEEDED = {"nesterov": {"momentum": 0.9}, "lasso": {"l1": 0.5}}


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_every_option_of_every_optimizer_makes_a_difference(kind: str, name: str) -> None:
    usual: Any = OPTIMIZERS[kind](**NEEDED.get(name, {}))
    if hasattr(usual, "decay_steps"):
        usual = replace(usual, decay_steps=4)
    other = replace(usual, **{name: OTHER[name]})

    def train(spec: Any) -> np.ndarray:
        rows = new_rows(spec, [1.0, 2.0, -1.0])
        rule = rule_for(spec, sparse=True)
        for step, gradient in enumerate([(4.0, -0.5, 1.0), (-0.4, 0.3, 2.0), (1.0, 1.0, 1.0)]):
            scalars = step_scalars(spec, learning_rate=0.1, step=step, clock=10 * step)
            g = np.array([gradient], np.float32)
            rule.update(rows, np.zeros(1, np.int64), g, 1.0, scalars)
        return rows[0, :3]

    assert not np.allclose(train(usual), train(other), rtol=1e-5)


@each_case
def test_an_optimizer_travels_as_json(spec: Any) -> None:
    assert optimizer_from_json(to_json(spec)) == spec


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("sgd", {"learning_rate": 0}, "learning_rate must be > 0, got 0"),
        ("sgd", {"learning_rate": float("inf")}, "learning_rate must be finite"),
        ("sgd", {"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ("sgd", {"nesterov": True}, "nesterov needs momentum > 0"),
        ("sgd", {"clip_value": 0.0}, "clip_value must be > 0"),
        ("adam", {"clip_norm": -1.0}, "clip_norm must be > 0"),
        ("adagrad", {"l2_regularization": -1e-9}, "l2_regularization must be >= 0"),
        ("adagrad", {"initial_accumulator": 0.0}, "initial_accumulator must be > 0"),
        ("rowwise_adagrad", {"initial_accumulator": -1.0}, "initial_accumulator must be > 0"),
        ("adagrad_decay", {"initial_accumulator": 0.0}, "initial_accumulator must be > 0"),
        ("adagrad_decay", {"decay_steps": 0}, "decay_steps must be >= 1"),
        ("adagrad_decay_v2", {"decay_rate": 1.0}, r"decay_rate must be in \(0, 1\)"),
        ("adagrad_decay", {"decay_rate": 0.0}, r"decay_rate must be in \(0, 1\)"),
        ("adam", {"beta1": 1.0}, "beta1 must be in"),
        ("adam_async", {"beta2": -0.1}, "beta2 must be in"),
        ("rowwise_adam", {"epsilon": 0.0}, "epsilon must be > 0"),
        ("adamw", {"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay must be >= 0"),
        ("rmsprop", {"decay": 1.0}, "decay must be in"),
        ("rmsprop", {"momentum": -0.1}, "momentum must be in"),
        ("rmsprop", {"epsilon": -1.0}, "epsilon must be > 0"),
        ("ftrl", {"learning_rate_power": 0.5}, "learning_rate_power must be in"),
        ("ftrl", {"initial_accumulator": 0.0}, "initial_accumulator must be > 0"),
        ("ftrl", {"l1": -1.0}, "l1 must be >= 0"),
        ("ftrl", {"l2": -1.0}, "l2 must be >= 0"),
        ("ftrl", {"l2_shrinkage": -1.0}, "l2_shrinkage must be >= 0"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OPTIMIZERS[kind](**values)
