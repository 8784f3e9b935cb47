"""Whose tokens a step's tokens are, where everyone waits for the step."""


class StepShares:
    """Keeps workers from taking so many tokens of a step that others are left without.

    A worker holds one token of a step, so that each has its part and a slow one is waited for once
    at most. Where a step has more batches than there are workers, who is not behind with its part
    holds a second one, to prepare it meanwhile.

    Args:
        group_size: batches of a step.
    """

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        # Batches that ended, by step: of all workers, and by worker.
        self._ended: dict[int, tuple[int, dict[int, int]]] = {}

    def ended(self, worker: int, step: int) -> None:
        """A worker has ended a batch of a step."""
        total, by_worker = self._ended.get(step, (0, {}))
        by_worker[worker] = by_worker.get(worker, 0) + 1
        self._ended[step] = total + 1, by_worker

    def has_all(self, worker: int, step: int, *, held: int, workers: int) -> bool:
        """Whether a worker has to leave the other tokens of a step to others.

        Args:
            held: tokens of the step that it holds.
            workers: that live.
        """
        if workers == 1:
            return False
        total, by_worker = self._ended.get(step, (0, {}))
        mine = by_worker.get(worker, 0)
        not_behind = mine > 0 and total <= mine * workers
        return held >= (2 if not_behind and self._group_size > workers else 1)

    def forget(self, *, before: int) -> None:
        """Steps before this one are formed."""
        for step in [step for step in self._ended if step < before]:
            del self._ended[step]
