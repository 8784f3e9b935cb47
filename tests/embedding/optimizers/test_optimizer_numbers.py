"""Optimizers in numbers: clipping and regularisation by hand, and DeepRec's own tests."""

from typing import Any

import numpy as np
import pytest

from embedding.optimizers.rule import rule_for, step_scalars
from embedding.spec.optimizers import (
    AdagradDecay,
    AdagradDecayV2,
    Adam,
    AdamAsync,
    AdamW,
    Ftrl,
    Sgd,
)


def new_rows(spec: Any, vectors: Any, *, sparse: bool = True) -> np.ndarray:
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    slots = rule_for(spec, sparse=sparse).initial_slots(vectors.shape[1])
    return np.hstack([vectors, np.tile(slots, (len(vectors), 1))])


# Clipping and regularisation ----------------------------------------------------------------------


def one_step(spec: Any, w: Any, g: Any, scale: float = 1.0) -> np.ndarray:
    rows = new_rows(spec, w)
    scalars = step_scalars(spec, learning_rate=1.0, step=0)
    rule = rule_for(spec, sparse=True)
    rule.update(rows, np.zeros(1, np.int64), np.array([g], np.float32), np.float32(scale), scalars)
    return rows[0, : len(w)]


def test_values_are_clipped_after_the_mean_is_taken() -> None:
    moved = -one_step(Sgd(clip_value=1.0), [0, 0, 0], [8.0, -2.0, -12.0], scale=0.25)

    assert moved.tolist() == [1.0, -0.5, -1.0]


def test_a_rows_norm_is_clipped_after_its_values_and_keeps_its_direction() -> None:
    long = -one_step(Sgd(clip_norm=1.0), [0, 0], [3.0, 4.0])
    both = -one_step(Sgd(clip_norm=1.0, clip_value=3.0), [0, 0], [3.0, 4.0])
    short = -one_step(Sgd(clip_norm=5.0), [0, 0], [3.0, 4.0])

    assert long == pytest.approx([0.6, 0.8], rel=1e-6)
    assert both == pytest.approx([0.5**0.5, 0.5**0.5], rel=1e-6)
    assert short.tolist() == [3.0, 4.0]


def test_regularisation_is_added_after_clipping() -> None:
    w = one_step(Sgd(clip_value=1.0, l2_regularization=0.5), [4.0, 0.0], [10.0, 10.0])

    assert w.tolist() == [4.0 - (1.0 + 2.0), -1.0]


def test_dense_parameters_have_no_row_norm_to_clip() -> None:
    with pytest.raises(ValueError, match=r"clip_norm .* use clip_value"):
        rule_for(Adam(clip_norm=1.0), sparse=False)


# DeepRec's numbers --------------------------------------------------------------------------------


def history(
    spec: Any, w: float, g: float, *, lr: float, steps: int, sparse: bool = True
) -> tuple[list[float], list[float]]:
    """A row of one element before each step, and the first slot after it."""
    rows = new_rows(spec, [w], sparse=sparse)
    seen, slot = [w], []
    for step in range(steps):
        scalars = step_scalars(spec, learning_rate=lr, step=step, clock=step)
        gradient = np.full((1, 1), g, np.float32)
        rule = rule_for(spec, sparse=sparse)
        rule.update(rows, np.zeros(1, np.int64), gradient, np.float32(1), scalars)
        seen.append(float(rows[0, 0]))
        slot.append(float(rows[0, 1]))
    return seen, slot


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", [AdagradDecay, AdagradDecayV2])
@pytest.mark.parametrize("catch_up", ["all_periods", "one_period"])
def test_adagrad_decay_gives_the_published_numbers(kind: Any, catch_up: str, sparse: bool) -> None:
    spec = kind(decay_steps=3, decay_rate=0.9, initial_accumulator=0.1, catch_up=catch_up)

    w, a = history(spec, 1.0, 0.1, lr=1.0, steps=4, sparse=sparse)
    assert a == pytest.approx([0.11, 0.12, 0.118, 0.128], abs=1e-6)
    assert w[1:] == pytest.approx([0.6984887, 0.4098135, 0.1187023, -0.1608062], abs=1e-6)

    w, a = history(spec, 3.0, 0.2, lr=1.0, steps=4, sparse=sparse)
    assert a == pytest.approx([0.14, 0.18, 0.202, 0.242], abs=1e-6)
    assert w[1:] == pytest.approx([2.4654775, 1.994073, 1.5490788, 1.142521], abs=1e-6)


@pytest.mark.parametrize("spec", [AdagradDecay(), AdagradDecayV2(), AdamAsync()])
def test_a_row_equals_a_dense_parameter_exactly(spec: Any) -> None:
    row = history(spec, 1.0, 2.0, lr=0.1, steps=5)
    dense = history(spec, 1.0, 2.0, lr=0.1, steps=5, sparse=False)

    assert row == dense


def test_the_accumulator_never_decays_below_its_start() -> None:
    spec = AdagradDecay(initial_accumulator=1.0, decay_rate=0.6, decay_steps=3)

    assert history(spec, 1.0, 0.1, lr=1.0, steps=4)[1] == pytest.approx([1.01, 1.02, 1.01, 1.02])
    assert history(spec, 1.0, 0.2, lr=1.0, steps=4)[1] == pytest.approx([1.04, 1.08, 1.04, 1.08])


def test_adagrad_decay_v2_gives_the_published_losses() -> None:
    """The loss is the sum of 2 w over 6 rows of 3."""
    spec = AdagradDecayV2(initial_accumulator=0.1, decay_steps=2)
    w, _ = history(spec, 1.0, 2.0, lr=0.1, steps=4)

    published = [36.0, 32.444176, 29.847788, 27.74195, 25.852505]
    assert [36 * value for value in w] == pytest.approx(published, abs=1e-4)


def test_an_idle_row_catches_up_every_period_at_once_or_one_a_touch() -> None:
    def accumulators(catch_up: Any) -> list[float]:
        spec = AdagradDecay(
            decay_steps=1, decay_rate=0.5, initial_accumulator=1.0, catch_up=catch_up
        )
        rows, rule = new_rows(spec, [0.0]), rule_for(spec, sparse=True)
        seen = []
        for clock, g in [(0, 8.0), (4, 0.0), (4, 0.0), (4, 0.0)]:
            scalars = step_scalars(spec, learning_rate=1.0, step=0, clock=clock)
            gradient = np.full((1, 1), g, np.float32)
            rule.update(rows, np.zeros(1, np.int64), gradient, np.float32(1), scalars)
            seen.append(float(rows[0, 1]))
        return seen

    # Period 1 at the first touch, 5 at the others.
    assert accumulators("all_periods") == [65.0, 65 / 16, 65 / 16, 65 / 16]
    assert accumulators("one_period") == [65.0, 65 / 2, 65 / 4, 65 / 8]


def test_a_row_born_late_starts_at_its_initial_accumulator() -> None:
    spec = AdagradDecay(decay_steps=1, initial_accumulator=0.25)
    rows = new_rows(spec, [0.0])
    scalars = step_scalars(spec, learning_rate=1.0, step=900, clock=900)

    gradient = np.zeros((1, 1), np.float32)
    rule_for(spec, sparse=True).update(rows, np.zeros(1, np.int64), gradient, 1.0, scalars)

    assert rows[0].tolist() == [0.0, 0.25, 901.0]


@pytest.mark.parametrize(("g", "left"), [(6.0, 0.8282884), (4.0, 0.7927219), (2.0, 0.688026)])
def test_ftrl_gives_the_published_rows(g: float, left: float) -> None:
    spec = Ftrl(learning_rate=0.1, l1=2.0, l2=1e-5, initial_accumulator=0.1)
    rows = new_rows(spec, [1.0, 1.0, 1.0])
    scalars = step_scalars(spec, learning_rate=0.1, step=0)

    gradient = np.full((1, 3), g, np.float32)
    rule_for(spec, sparse=True).update(rows, np.zeros(1, np.int64), gradient, 1.0, scalars)

    assert rows[0, :3] == pytest.approx([left] * 3, abs=2e-6)


def test_ftrl_zeroes_whole_rows_or_single_coordinates() -> None:
    def trained(lasso: Any) -> np.ndarray:
        spec = Ftrl(l1=3.0, lasso=lasso)
        rows = new_rows(spec, [[0.0, 0.0], [0.0, 0.0]])
        scalars = step_scalars(spec, learning_rate=0.1, step=0)
        g = np.array([[1.0, 2.0], [2.0, 4.0]], np.float32)
        rule_for(spec, sparse=True).update(rows, np.arange(2), g, 1.0, scalars)
        return rows[:, :2] != 0

    assert trained("row").tolist() == [[False, False], [True, True]]
    assert trained("coordinate").tolist() == [[False, False], [False, True]]


def test_adam_does_not_move_rows_without_a_gradient() -> None:
    """Lazy, as DeepRec's tables: TensorFlow's Adam goes on by momentum alone."""
    spec = Adam()
    rows = new_rows(spec, [[1.0], [1.0]])
    rule = rule_for(spec, sparse=True)
    for step in range(3):
        scalars = step_scalars(spec, learning_rate=0.1, step=step)
        rule.update(rows, np.array([int(step > 0)]), np.ones((1, 1), np.float32), 1.0, scalars)

    assert rows[0, 0] == pytest.approx(0.9, abs=1e-6)


def test_adamw_decays_by_the_scaling_that_was_chosen() -> None:
    def left(scaling: Any, step: int) -> float:
        spec = AdamW(weight_decay=0.1, decay_scaling=scaling)
        rows = new_rows(spec, [2.0])
        scalars = step_scalars(spec, learning_rate=0.01, step=step)
        gradient = np.zeros((1, 1), np.float32)
        rule_for(spec, sparse=True).update(rows, np.zeros(1, np.int64), gradient, 1.0, scalars)
        return float(rows[0, 0])

    corrected = 0.01 * (1 - 0.999**5) ** 0.5 / (1 - 0.9**5)
    assert left("learning_rate", 4) == pytest.approx(2 - 0.01 * 0.1 * 2)
    assert left("none", 4) == pytest.approx(2 - 0.1 * 2)
    assert left("corrected", 4) == pytest.approx(2 - corrected * 0.1 * 2)
