"""One evaluation of the model as it is at a step: its batches, and the sums of their scores."""

from dataclasses import dataclass, replace

import numpy as np

from scheduler.coordinator.batches import Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from worker.metrics import StreamingAuc
from worker.protocol import Finished, Token


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Scores over the evaluation files; `samples_skipped` of them could not be read.

    They are weighted where samples have weights.
    """

    step: int
    clock: int
    auc: float
    auc_error_bound: float
    logloss: float
    samples: int
    samples_skipped: int = 0


def is_evaluation_due(every: int, *, before: int, now: int) -> bool:
    """Whether a step during which the clock went from one value to another ends at an evaluation.

    Args:
        every: ticks from one evaluation to the next; 0: none is ever due.
    """
    return every > 0 and now // every > before // every


class EvaluationRound:
    """Gives out evaluation batches and merges their scores, in any order.

    Args:
        plan: of the evaluation files.
        step: the step that every pull must read; no record is formed meanwhile.
        weighted: whether samples have weights.
    """

    def __init__(self, plan: LedgerPlan, *, step: int, clock: int, weighted: bool = False) -> None:
        self.step = step
        self.clock = clock
        self.ledger = Ledger(plan, group_size=1, batch_is_step=True, kind="eval")
        self._auc = StreamingAuc(weighted=weighted)
        self._samples = 0
        self._log_loss: dict[int, float] = {}

    def lease(self, worker: int) -> Token | None:
        """Give out an evaluation batch; its step is the round's, before all that waits for it."""
        token = self.ledger.lease(worker, step_now=self.step, at_step=lambda _: self.step)
        return None if token is None else replace(token, step=self.step)

    def finish(self, finished: Finished) -> bool:
        """Add a batch's scores once; return whether they counted.

        Every round begins its attempts anew, so a late report can name a batch of an earlier one.
        """
        if finished.token.at_step != self.step or not self.ledger.finish(finished):
            return False
        scores = finished.evaluation
        if scores is not None:
            counts = np.zeros_like(self._auc.counts)
            for label in (False, True):
                its = scores.positive == label
                weights = None if scores.weights is None else scores.weights[its]
                counts[int(label)] = np.bincount(
                    scores.bins[its], weights, minlength=counts.shape[1]
                )
            self._auc.add_counts(counts)
            self._samples += scores.bins.size
            self._log_loss[finished.token.batch_id] = scores.log_loss_sum
        batch = self.ledger.next_ended()
        assert batch is not None, "it has just ended"
        self.ledger.resolve(batch, Status.APPLIED)
        return True

    @property
    def complete(self) -> bool:
        return self.ledger.exhausted

    def result(self) -> EvaluationResult:
        """Return the scores; log losses are summed in the order of the batches."""
        total = sum(self._log_loss[batch_id] for batch_id in sorted(self._log_loss))
        return EvaluationResult(
            step=self.step,
            clock=self.clock,
            auc=self._auc.value(),
            auc_error_bound=self._auc.error_bound(),
            logloss=total / self._auc.total if self._auc.total else float("nan"),
            samples=self._samples,
            samples_skipped=self.ledger.samples.skipped,
        )
