"""Records that wait for their norms: events in, commands out."""

import math
from typing import Any

import numpy as np
import pytest

from ps.messages.records import Entry, Record
from scheduler.coordinator.dense_norms import DenseNorms, norm_of_blocks
from scheduler.coordinator.events import Command, FailJob, MeasureDenseNorm, SendRecords


def record(step: int, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "step": step,
        "recovery_epoch": 0,
        "mode_epoch": 0,
        "entries": (Entry(step, 0, 1.0),),
        "divisor": 4,
        "scalars": (),
    }
    return Record(**{**fields, **changes})


def blocks(*sums: float) -> np.ndarray:
    return np.array(sums, np.float64)


def sent(commands: list[Command]) -> list[tuple[int, float]]:
    """Steps and factors of the records that are sent, in order."""
    records = [r for c in commands if isinstance(c, SendRecords) for r in c.records]
    return [(r.step, r.dense_factor) for r in records]


def measured(commands: list[Command]) -> list[int]:
    return [c.step for c in commands if isinstance(c, MeasureDenseNorm)]


def test_without_a_limit_records_are_sent_at_once() -> None:
    commands = DenseNorms(None).order([record(0), record(1)])

    assert commands == [SendRecords((record(0), record(1)))]


def test_a_record_waits_for_the_norm_of_its_gradient() -> None:
    norms = DenseNorms(1.0)

    commands = norms.order([record(0)])
    assert commands == [MeasureDenseNorm(0, record(0).entries, 4)]

    assert sent(norms.measured(0, [blocks(9.0), blocks(), blocks(7.0)])) == [(0, 0.25)]


@pytest.mark.parametrize(
    ("limit", "squares", "factor"),
    [(2.0, 4.0, 1.0), (2.0, 3.0, 1.0), (2.0, 0.0, 1.0), (2.0, 16.0, 0.5), (0.1, 1.0, 0.1)],
)
def test_only_a_norm_above_the_limit_is_clipped(
    limit: float, squares: float, factor: float
) -> None:
    norms = DenseNorms(limit)
    norms.order([record(0)])

    assert sent(norms.measured(0, [blocks(squares)])) == [(0, factor)]


def test_steps_whose_norms_come_in_any_order_are_sent_in_theirs() -> None:
    norms = DenseNorms(1.0)
    assert measured(norms.order([record(0), record(1)])) == [0, 1]
    assert measured(norms.order([record(2)])) == [2]

    assert sent(norms.measured(1, [blocks(4.0)])) == []
    assert norms.awaited == [0, 2]
    assert sent(norms.measured(0, [blocks(0.0)])) == [(0, 1.0), (1, 0.5)]
    assert sent(norms.measured(2, [blocks(16.0)])) == [(2, 0.25)]


@pytest.mark.parametrize(
    "empty", [{"entries": (), "divisor": 0}, {"entries": (Entry(1, 0, 0.0),)}, {"divisor": 0}]
)
def test_a_step_that_changes_nothing_is_not_measured_and_keeps_its_turn(
    empty: dict[str, Any],
) -> None:
    norms = DenseNorms(1.0)

    assert measured(norms.order([record(0), record(1, **empty)])) == [0]
    assert sent(norms.measured(0, [blocks(4.0)])) == [(0, 0.5), (1, 1.0)]
    assert sent(norms.order([record(2, **empty)])) == [(2, 1.0)]


def test_a_norm_that_comes_again_changes_nothing() -> None:
    norms = DenseNorms(1.0)
    norms.order([record(0), record(1)])
    norms.measured(1, [blocks(4.0)])

    assert norms.measured(1, [blocks(9.0)]) == []
    assert sent(norms.measured(0, [blocks(1.0)])) == [(0, 1.0), (1, 0.5)]
    assert norms.measured(0, [blocks(9.0)]) == []


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_fails_the_job_and_sends_nothing(bad: float) -> None:
    norms = DenseNorms(1.0)
    norms.order([record(0), record(1)])

    (failure,) = norms.measured(0, [blocks(1.0, bad)])

    assert isinstance(failure, FailJob)
    assert "dense gradient of global step 0 is not finite" in failure.text
    assert norms.measured(1, [blocks(1.0)]) == []


def test_blocks_are_added_in_their_order_whatever_the_shards() -> None:
    values = np.random.default_rng(4).random(50) * 10.0 ** np.arange(-25, 25)
    expected = math.sqrt(np.cumsum(values)[-1])

    for cuts in ([], [1], [25, 26], [3, 3, 40]):
        assert norm_of_blocks(np.split(values, cuts)) == expected
