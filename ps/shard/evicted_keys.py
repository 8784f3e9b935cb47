"""The keys that were evicted from a table a short while ago, for gradients that come late."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.messages.pull_push import Contribution

Int64Array = npt.NDArray[np.int64]
EvictedRuns = tuple[tuple[Int64Array, Int64Array], ...]
"""Evicted keys as a value: keys and the steps that evicted them, of each run."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Evicted keys in ascending order, each once, and the step that evicted it last.

    Args:
        keys, steps: int64[n].
        newest: the latest of the steps.
    """

    keys: Int64Array
    steps: Int64Array
    newest: int


class EvictedKeys:
    """Keys by the step that evicted them, 16 bytes each.

    They are kept in sorted runs, each less than half as long as the one before it, so that a
    look-up is a few binary searches however many evictions are remembered.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._forgotten_before = 0

    def __len__(self) -> int:
        """Keys that are held; one may count once for every run."""
        return sum(run.keys.size for run in self._runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, step: int, keys: Int64Array) -> None:
        """Remember that a step, later than those before it, evicted keys, int64[n], each once."""
        if keys.size == 0:
            return
        run = _Run(np.sort(keys), np.full(keys.size, step, np.int64), step)
        while self._runs and self._runs[-1].keys.size < 2 * run.keys.size:
            run = self._merged(self._runs.pop(), run)
        self._runs.append(run)

    def forget(self, *, before: int) -> None:
        """Forget evictions of steps before one; nobody may ask for them any more."""
        self._forgotten_before = before
        self._runs = [run for run in self._runs if run.newest >= before]

    def clear(self) -> None:
        self._runs.clear()
        self._forgotten_before = 0

    def runs(self) -> EvictedRuns:
        """Return what is remembered, for another copy of the table; its arrays never change."""
        return tuple((run.keys, run.steps) for run in self._runs)

    def take(self, runs: EvictedRuns) -> None:
        """Remember what another copy does, and nothing else."""
        self.clear()
        self._runs = [_Run(keys, steps, int(steps.max())) for keys, steps in runs]

    def evicted_since(self, step: int, keys: Int64Array) -> npt.NDArray[np.bool_]:
        """Return which of some keys, int64[n], were evicted by that step or a later one."""
        found = np.zeros(keys.size, np.bool_)
        for run in self._runs:
            if run.newest >= step:
                places = np.minimum(np.searchsorted(run.keys, keys), run.keys.size - 1)
                found |= (run.keys[places] == keys) & (run.steps[places] >= step)
        return found

    def _merged(self, older: _Run, newer: _Run) -> _Run:
        kept = older.steps >= self._forgotten_before
        keys = np.concatenate([older.keys[kept], newer.keys])
        steps = np.concatenate([older.steps[kept], newer.steps])
        order = np.argsort(keys, kind="stable")  # of two equal keys the newer one is the second
        keys, steps = keys[order], steps[order]
        last = np.append(keys[1:] != keys[:-1], True)
        return _Run(keys[last], steps[last], newer.newest)


def kept_since_pull(
    evicted: Sequence[EvictedKeys], contribution: Contribution
) -> npt.NDArray[np.uint8] | None:
    """Mark the keys of a contribution that were not evicted since it pulled them; None: all.

    Args:
        evicted: of each table, in the order in which messages list them.
    """
    if not any(evicted):
        return None
    mask: npt.NDArray[np.uint8] | None = None
    start = 0
    for of_table, size in zip(evicted, contribution.table_sizes, strict=True):
        if size and of_table:
            keys = contribution.keys[start : start + size]
            gone = of_table.evicted_since(contribution.pull_step, keys)
            if gone.any():
                mask = np.ones(contribution.keys.size, np.uint8) if mask is None else mask
                mask[start : start + size][gone] = 0
        start += size
    return mask
