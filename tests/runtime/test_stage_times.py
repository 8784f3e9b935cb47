"""Sums of time by stage."""

import time

import pytest

from runtime.stage_times import StageTimes


def test_stages_add_up_and_others_stay_at_zero() -> None:
    times = StageTimes("read", "wait")

    times.add("read", 1_500_000_000)
    times.add("read", 500_000_000)

    assert times.seconds() == {"read": 2.0, "wait": 0.0}


def test_a_block_that_raises_is_measured() -> None:
    times = StageTimes("read")

    def read() -> None:
        with times.measure("read"):
            time.sleep(0.01)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        read()

    assert times.seconds()["read"] >= 0.01


def test_an_unknown_stage_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        StageTimes("read").add("write", 1)
