import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.spec.optimizers import OPTIMIZERS, Ftrl, Sgd
from embedding.spec.schedule import Schedule

STEPS = [0, 1, 4, 5, 15, 25, 26, 1000]


def factors(**options: Any) -> list[float]:
    return [Schedule(**options).factor(clock) for clock in STEPS]


def test_a_constant_schedule_changes_nothing() -> None:
    assert factors() == [1.0] * len(STEPS)


def test_a_warm_up_rises_in_a_straight_line_from_its_first_step() -> None:
    assert factors(warmup_steps=5) == pytest.approx([0.2, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_a_polynomial_falls_after_the_warm_up_and_then_stays() -> None:
    straight = factors(type="polynomial", warmup_steps=5, decay_steps=20, end_factor=0.2)
    square = factors(type="polynomial", warmup_steps=5, decay_steps=20, power=2.0)

    assert straight == pytest.approx([0.2, 0.4, 1.0, 1.0, 0.6, 0.2, 0.2, 0.2])
    assert square == pytest.approx([0.2, 0.4, 1.0, 1.0, 0.25, 0.0, 0.0, 0.0])


def test_a_cosine_falls_slowly_at_both_ends() -> None:
    schedule = Schedule(type="cosine", decay_steps=100, end_factor=0.1)

    for clock in range(101):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * clock / 100)) / 2
        assert schedule.factor(clock) == pytest.approx(expected, abs=1e-12)
    assert schedule.factor(10**9) == pytest.approx(0.1)


def test_a_cosine_with_restarts_begins_again_after_every_period_without_an_end() -> None:
    once = Schedule(type="cosine", warmup_steps=3, decay_steps=10, end_factor=0.1)
    again = Schedule(type="cosine_restarts", warmup_steps=3, decay_steps=10, end_factor=0.1)

    for clock in range(3):
        assert again.factor(clock) == once.factor(clock)
    for period in (0, 1, 7, 10**12):
        for clock in range(3, 13):
            assert again.factor(clock + 10 * period) == once.factor(clock)


def test_an_inverse_power_falls_for_ever_and_by_less_and_less() -> None:
    root = Schedule(type="inverse", warmup_steps=10, decay_steps=100)
    assert [root.factor(clock) for clock in (10, 310, 9_910)] == pytest.approx([1.0, 0.5, 0.1])
    line = Schedule(type="inverse", decay_steps=100, power=1.0, end_factor=0.2)
    assert [line.factor(clock) for clock in (0, 100, 300)] == pytest.approx([1.0, 0.6, 0.4])
    late = [root.factor(10**n) for n in range(2, 15)]
    assert late == sorted(set(late), reverse=True)
    assert late[-1] > 0


@given(
    st.sampled_from(["polynomial", "cosine"]),
    st.integers(0, 50),
    st.integers(1, 50),
    st.floats(0, 1),
)
def test_factors_stay_in_their_range_and_never_rise_again(
    kind: Any, warmup: int, decay: int, end: float
) -> None:
    schedule = Schedule(type=kind, warmup_steps=warmup, decay_steps=decay, end_factor=end)
    seen = [schedule.factor(clock) for clock in range(120)]

    assert all(0 <= value <= 1 for value in seen)
    assert seen[:warmup] == sorted(seen[:warmup])
    falling = seen[max(0, warmup - 1) :]
    assert falling == sorted(falling, reverse=True)
    assert seen[-1] == pytest.approx(end)


@pytest.mark.parametrize("kind", sorted(set(OPTIMIZERS) - {"ftrl"}))
def test_every_optimizers_learning_rate_follows_its_schedule(kind: str) -> None:
    schedule = Schedule(type="polynomial", warmup_steps=2, decay_steps=4)
    optimizer = OPTIMIZERS[kind](learning_rate=0.5, schedule=schedule)

    rates = [optimizer.learning_rate_at(clock) for clock in range(8)]

    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0])
    assert OPTIMIZERS[kind](learning_rate=0.5).learning_rate_at(7) == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"warmup_steps": 10**30}, r"warmup_steps must be below 2\^62"),
        ({"type": "cosine", "decay_steps": 10**30}, r"decay_steps must be below 2\^62"),
        ({"type": "cosine"}, "decay_steps is required for cosine"),
        ({"type": "cosine", "decay_steps": 0}, "decay_steps must be >= 1, got 0"),
        ({"type": "constant", "decay_steps": 5}, "decay_steps is not for a constant schedule"),
        ({"end_factor": 0.5}, "end_factor is not for a constant schedule"),
        ({"type": "cosine", "decay_steps": 5, "end_factor": 1.5}, r"end_factor must be in \[0, 1"),
        (
            {"type": "cosine", "decay_steps": 5, "end_factor": float("nan")},
            r"end_factor must be in \[0, 1\]",
        ),
        ({"type": "cosine", "decay_steps": 5, "power": 2.0}, "power is not for a cosine schedule"),
        ({"type": "polynomial", "decay_steps": 5, "power": 0.0}, "power must be > 0"),
    ],
)
def test_numbers_that_can_not_be_meant_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule(**options)


def test_ftrl_takes_no_schedule() -> None:
    with pytest.raises(ValueError, match="ftrl takes no schedule"):
        Ftrl(schedule=Schedule(warmup_steps=2))
    Sgd(schedule=Schedule(warmup_steps=2))
