"""One evaluation of the model as it is at a step: its batches, and the sums of their scores."""

from dataclasses import dataclass, replace

from scheduler.coordinator.batches import Status
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished, Token
from worker.score_sums import ScoreSums, TaskResult


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Scores over the evaluation files; `samples_skipped` of them could not be read.

    They are weighted where samples have weights.

    Args:
        gauc, gauc_groups, gauc_samples: as of `TaskResult`.
        tasks: of a job with several; the scores beside are those of the first then.
    """

    step: int
    clock: int
    auc: float
    auc_error_bound: float
    logloss: float
    samples: int
    samples_skipped: int = 0
    gauc: float | None = None
    gauc_groups: int = 0
    gauc_samples: int = 0
    tasks: tuple[TaskResult, ...] = ()


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
        tasks: names of several; empty: there is one.
        grouped: whether samples are ranked by group, too.
    """

    def __init__(
        self,
        plan: LedgerPlan,
        *,
        step: int,
        clock: int,
        weighted: bool = False,
        tasks: tuple[str, ...] = (),
        grouped: bool = False,
    ) -> None:
        self.step = step
        self.clock = clock
        self.ledger = Ledger(plan, group_size=1, batch_is_step=True, kind="eval")
        self._several = bool(tasks)
        self._sums = ScoreSums(tasks, weighted=weighted, grouped=grouped)

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
            self._sums.add(finished.token.batch_id, scores)
        batch = self.ledger.next_ended()
        assert batch is not None, "it has just ended"
        self.ledger.resolve(batch, Status.APPLIED)
        return True

    @property
    def complete(self) -> bool:
        return self.ledger.exhausted

    def result(self) -> EvaluationResult:
        """Return the scores."""
        tasks = self._sums.results()
        first = tasks[0]
        return EvaluationResult(
            step=self.step,
            clock=self.clock,
            auc=first.auc,
            auc_error_bound=first.auc_error_bound,
            logloss=first.logloss,
            samples=first.samples,
            samples_skipped=self.ledger.samples.skipped,
            gauc=first.gauc,
            gauc_groups=first.gauc_groups,
            gauc_samples=first.gauc_samples,
            tasks=tasks if self._several else (),
        )


def round_of(spec: CoordinatorSpec, plan: LedgerPlan, *, step: int, clock: int) -> EvaluationRound:
    """Return an evaluation of a job."""
    return EvaluationRound(
        plan,
        step=step,
        clock=clock,
        weighted=spec.weighted,
        tasks=spec.tasks,
        grouped=spec.grouped,
    )
