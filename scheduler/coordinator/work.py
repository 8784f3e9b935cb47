"""What a worker is at, of all that it holds."""

from scheduler.coordinator.batches import Batch
from scheduler.coordinator.evaluation import EvaluationRound
from scheduler.coordinator.ledger import Ledger
from worker.protocol import TokenKind


def work_of(
    worker: int, ledger: Ledger, evaluation: EvaluationRound | None, *, applied_step: int
) -> tuple[TokenKind, Batch] | None:
    """Return the batch that a worker is at; None: it has none, or waits for others with it.

    It does not wait where a batch is pending that others wait for: it would ask for that one, once
    it has read its own and waits for their rows.
    """
    kind: TokenKind = "train"
    batch = ledger.lowest_of(worker)
    if evaluation is not None:
        scored = evaluation.ledger.lowest_of(worker)
        if scored is not None and (batch is None or evaluation.step <= batch.step):
            kind, batch = "eval", scored
    if batch is None:
        return None
    if batch.pull_step > applied_step and not _is_pending(batch.step, ledger, evaluation):
        return None
    return kind, batch


def _is_pending(step: int, ledger: Ledger, evaluation: EvaluationRound | None) -> bool:
    """Whether nobody has a batch before a step, or one of the evaluation that holds it."""
    if evaluation is not None and evaluation.ledger.has_pending():
        return True
    return ledger.has_pending(before=step)
