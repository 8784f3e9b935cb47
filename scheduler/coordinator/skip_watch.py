"""Notices that a job does nothing any more but skip batches whose gradients are not finite."""

from scheduler.coordinator.events import Command, FailJob
from worker.protocol import Finished, Token


class SkipWatch:
    """Fails a job once so many batches in a row had to be skipped, in the order of their ends.

    Batches that can't be read are no part of a row and don't end it: they say nothing of the model.

    Args:
        limit: of batches in a row; None: any number may come.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._row = 0
        self._first: Token | None = None
        self._trained: Finished | None = None

    def ended(self, finished: Finished) -> list[Command]:
        """Look at the end of a batch that counts; return what to do about it."""
        if finished.outcome == "done":
            self._row, self._trained = 0, finished
        elif finished.reason == "non_finite":
            self._row += 1
            if self._row == 1:
                self._first = finished.token
            if self._row == self._limit:
                return [FailJob(self._text(finished.token))]
        return []

    def _text(self, last: Token) -> str:
        assert self._first is not None, "a row has a first batch"
        before = "no batch before them was trained"
        if self._trained is not None:
            loss = self._trained.loss_sum / max(1, self._trained.samples)
            before = f"the last one before them that was trained is {_name(self._trained.token)},"
            before += f" with a loss of {loss:.4g} a sample"
        return (
            f"{self._row} batches in a row were skipped because their gradients are not finite,"
            f" from {_name(self._first)} to {_name(last)}; {before}. Either the model gives no"
            " finite numbers any more, or these batches give none. Lower the learning rate and"
            " start from a checkpoint before that step, check the dense columns for huge values,"
            " or, where so many bad batches are expected, raise"
            " training.max_consecutive_non_finite (null: no limit)"
        )


def _name(token: Token) -> str:
    return f"batch {token.batch_id} (step {token.step})"
