"""How long steps are is seen in residuals: of a model of one number, of which it is known."""

import numpy as np
import pytest

from bench.step_length import StepLength


def residuals(size: float, *, steps: int, stale: int = 0, seed: int = 0) -> list[float]:
    """Return the mean residuals of steps that go so far towards the optimum of their samples."""
    rng = np.random.default_rng(seed)
    distances = [1.0]
    seen = []
    for step in range(steps):
        seen.append(distances[max(0, step - stale)] + rng.normal())
        distances.append(distances[-1] - size * seen[-1])
    return seen


def share_after(seen: list[float]) -> float | None:
    length = StepLength()
    for residual in seen:
        length.step(residual)
    return length.share


@pytest.mark.parametrize("size", [0.1, 0.4, 0.8, 1.2, 1.8])
def test_the_length_of_steps_is_found_in_their_residuals(size: float) -> None:
    found = [share_after(residuals(size, steps=1000, seed=seed)) or 0.0 for seed in range(40)]

    assert np.mean(found) == pytest.approx(size, abs=0.08)
    assert np.std(found) < 0.2


@pytest.mark.parametrize(("size", "stable"), [(0.5, True), (0.9, True), (1.1, False), (1.9, False)])
def test_what_it_measures_is_what_gradients_of_the_step_before_may_not_exceed(
    size: float, stable: bool
) -> None:
    """The fact that it is for: in sync all of these are stable."""
    assert np.abs(residuals(size, steps=600)).max() < 20
    assert (np.abs(residuals(size, steps=600, stale=1)).max() < 20) == stable


def test_nothing_is_said_of_a_few_steps() -> None:
    assert share_after(residuals(0.05, steps=100)) is None


def test_steps_that_become_shorter_are_seen_as_they_are_now() -> None:
    seen = [*residuals(1.8, steps=500), *residuals(0.1, steps=1000)]

    assert (share_after(seen) or 0.0) < 0.4
