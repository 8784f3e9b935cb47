"""How long steps are is seen in residuals: of a model of one number, of which it is known."""

import numpy as np
import pytest

from scheduler.coordinator.modes.settling import Settling


def residuals(size: float, *, steps: int, stale: int = 0, seed: int = 0) -> list[float]:
    """Return the mean residuals of steps that go so far towards the optimum of their samples."""
    rng = np.random.default_rng(seed)
    distances = [1.0]
    seen = []
    for step in range(steps):
        seen.append(distances[max(0, step - stale)] + rng.normal())
        distances.append(distances[-1] - size * seen[-1])
    return seen


def settling_after(seen: list[float], *, group_size: int = 4) -> Settling:
    settling = Settling(group_size)
    for residual in seen:
        settling.step(residual)
    return settling


@pytest.mark.parametrize("size", [0.1, 0.4, 0.8, 1.2, 1.8])
def test_the_length_of_steps_is_found_in_their_residuals(size: float) -> None:
    found = [
        settling_after(residuals(size, steps=1000, seed=seed)).step_size or 0.0
        for seed in range(40)
    ]

    assert np.mean(found) == pytest.approx(size, abs=0.08)
    assert np.std(found) < 0.2


@pytest.mark.parametrize(("size", "stable"), [(0.5, True), (0.9, True), (1.1, False), (1.9, False)])
def test_what_it_measures_is_what_gradients_of_the_step_before_may_not_exceed(
    size: float, stable: bool
) -> None:
    """The fact that it is for: in sync all of these are stable."""
    assert np.abs(residuals(size, steps=600)).max() < 20
    assert (np.abs(residuals(size, steps=600, stale=1)).max() < 20) == stable


def test_long_steps_keep_a_job_in_sync_and_short_ones_do_not() -> None:
    long, short = (settling_after(residuals(size, steps=400)) for size in (1.5, 0.05))

    assert not long.allows(workers=4)
    assert short.allows(workers=4)


def test_the_large_residuals_of_the_beginning_do_not_hide_that_steps_are_long() -> None:
    beginning = [50.0 * 0.8**step for step in range(20)]

    assert not settling_after([*beginning, *residuals(1.5, steps=400)]).allows(workers=4)


def test_more_workers_than_batches_in_a_step_need_shorter_steps() -> None:
    settling = settling_after(residuals(0.5, steps=4000))

    assert settling.allows(workers=4)
    assert not settling.allows(workers=16)


def test_a_step_of_four_batches_of_each_worker_does_no_harm_whatever_its_length() -> None:
    assert Settling(group_size=16).allows(workers=4)
    assert not Settling(group_size=15).allows(workers=4)


def test_nothing_is_said_of_a_few_steps() -> None:
    settling = settling_after(residuals(0.05, steps=256))
    assert settling.step_size is None
    assert not settling.allows(workers=4)

    settling.step(0.1)
    assert settling.step_size is not None


def test_steps_that_become_shorter_are_seen_as_they_are_now() -> None:
    seen = [*residuals(1.8, steps=500), *residuals(0.1, steps=1000)]

    assert (settling_after(seen).step_size or 0.0) < 0.4
