"""What a contribution weighs, by how stale its data are."""

import numpy as np
import pytest

from scheduler.coordinator.modes.stale_weights import Cutoff, Inverse, Power, StaleWeight, weight_of


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_the_cutoff_is_exactly_at_the_bound(bound: int) -> None:
    weights = [weight_of(Cutoff(), s, bound=bound) for s in range(-2, bound + 3)]

    assert weights == [1.0] * (bound + 3) + [0.0, 0.0]


def test_a_power_decays_with_every_step_beyond_the_bound() -> None:
    weights = [weight_of(Power(base=0.5), s, bound=2) for s in (-5, 0, 2, 3, 5)]

    assert weights == [1.0, 1.0, 1.0, 0.5, 0.125]


def test_the_inverse_counts_from_the_first_step_whatever_the_bound() -> None:
    for bound in (0, 9):
        weights = [weight_of(Inverse(), s, bound=bound) for s in (-1, 0, 1, 2, 4)]

        assert weights == [1.0, 1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("rule", [Cutoff(), Power(base=0.3), Inverse()])
def test_weights_are_numbers_that_shards_take_as_they_are(rule: StaleWeight) -> None:
    for staleness in range(-3, 400):
        weight = weight_of(rule, staleness, bound=1)

        assert float(np.float32(weight)) == weight


def test_what_a_shard_would_take_for_nothing_is_nothing() -> None:
    assert weight_of(Power(base=0.5), 200, bound=0) == 0.0
    assert weight_of(Power(base=0.0), 1, bound=0) == 0.0


@pytest.mark.parametrize("base", [-0.1, 1.0, 2.0])
def test_a_weight_that_never_decays_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match="base must be in"):
        Power(base=base)
