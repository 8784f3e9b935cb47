"""What may differ between `gba` and `sync`, one thing at a time: cases for a replay."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The batches of so many steps are mixed where they are; all cases have a multiple of these.
MIXED_STEPS = 8

# Steps by which the i-th batch of step k is late: the step of its own minus the one that it read.
Staleness = Callable[[int, int], int]
# The ids of the batches of step k, where a step has M.
Order = Callable[[int, int], list[int]]


def fresh(step: int, batch: int) -> int:
    return 0


def in_order(step: int, m: int) -> list[int]:
    return list(range(step * m, (step + 1) * m))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How a replay differs from synchronous training.

    Args:
        name: of the case.
        base: name of the case that it is compared with.
        rows, dense: how stale they are.
        ahead: whether dense parameters are read a step ahead, as workers of `gba` do; they are
            then as late as rows, and the i-th batch of a step sees the first i + 1 of the step
            before.
        order: which batches make a step.
        reversed_sums: whether a step's contributions are summed from the last to the first.
        half_of_keys: whether rows and dense parameters are late on one of two shards only.
        overrides: of the job file.
        slots: of dense parameters: those of the optimizer; `as in sync`: set after each step to
            those that `sync` has there; `warm`: they begin with those that `sync` ends with.
    """

    name: str
    base: str = "sync"
    rows: Staleness = fresh
    dense: Staleness = fresh
    ahead: bool = False
    order: Order = in_order
    reversed_sums: bool = False
    half_of_keys: bool = False
    overrides: tuple[str, ...] = ()
    slots: str = "own"


def _all(steps: int) -> Staleness:
    return lambda step, batch: steps


def _share(share: float) -> Staleness:
    late = np.random.default_rng(7).random((1 << 12, 64)) < share
    return lambda step, batch: int(late[step % len(late), batch % 64])


def _first(steps: int) -> Staleness:
    return lambda step, batch: int(step < steps)


def _after(steps: int) -> Staleness:
    return lambda step, batch: int(step >= steps)


def _twice(step: int, m: int) -> list[int]:
    """Of two steps one has two batches of the first lane, and the other two of the last."""
    if m == 1:
        return in_order(step, m)
    even, odd = in_order(step - step % 2, m), in_order(step - step % 2 + 1, m)
    return [*odd[1:], even[-1]] if step % 2 else [*even[:-1], odd[0]]


def _mixed(step: int, m: int) -> list[int]:
    """The batches of eight steps in any order."""
    window, place = divmod(step, MIXED_STEPS)
    first = window * MIXED_STEPS * m
    mixed = np.random.default_rng(window).permutation(MIXED_STEPS * m) + first
    return [int(batch) for batch in mixed[place * m : (place + 1) * m]]


def _both(name: str, staleness: Staleness, **changes: object) -> Case:
    return Case(name=name, rows=staleness, dense=staleness, **changes)  # type: ignore[arg-type]


_LARGE = ("embedding.optimizer.initial_accumulator=0.1", "model.optimizer.initial_accumulator=0.1")

CASES = (
    Case(name="sync"),
    _both("all one step", _all(1)),
    _both("all two steps", _all(2)),
    Case(name="rows one step", rows=_all(1)),
    Case(name="dense one step", dense=_all(1)),
    _both("a quarter of the batches one step", _share(0.25)),
    _both("half of the batches one step", _share(0.5)),
    _both("three quarters of the batches one step", _share(0.75)),
    _both("one step in the first 20 steps", _first(20)),
    _both("one step after 20 steps", _after(20)),
    _both("one step after 120 steps", _after(120)),
    _both("one step, sums of squares of dense parameters as in sync", _all(1), slots="as in sync"),
    Case(name="sync, sums of squares begin at 0.1", overrides=_LARGE),
    _both(
        "one step, sums of squares begin at 0.1",
        _all(1),
        overrides=_LARGE,
        base="sync, sums of squares begin at 0.1",
    ),
    Case(name="sync, sums of squares of dense parameters begin warm", slots="warm"),
    _both(
        "one step, sums of squares of dense parameters begin warm",
        _all(1),
        slots="warm",
        base="sync, sums of squares of dense parameters begin warm",
    ),
    Case(name="sums of a step from last to first", reversed_sums=True),
    _both("one step on one of two shards", _all(1), half_of_keys=True),
    Case(name="two batches of one worker in a step", order=_twice),
    Case(name="batches of eight steps mixed", order=_mixed),
    _both("one step, read ahead", _all(1), ahead=True),
    _both("one step after 20 steps, read ahead", _after(20), ahead=True),
)
