"""What goes on from one coordinator of a job to the next: as a value, and as JSON in a checkpoint.

It is of a moment between two steps. What is under way then (leases, attempts, an evaluation) begins
anew; what is resolved, counted or decided stays.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from runtime.typed import from_json, to_json
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.growing_plan import PlanState
from scheduler.coordinator.ledger_state import LedgerState
from scheduler.coordinator.mode_control import ModeState
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.staleness import Histogram
from scheduler.coordinator.start import Start

Counts = tuple[tuple[int, int], ...]

# A job that has lost more than so many times says only of the last ones where they began.
MOST_HISTORIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorState:
    """How far a job is before its step `step`.

    Args:
        step: the next one to be ordered.
        start: where the job began.
        ledger, modes, clock: their states.
        data_staleness, parameter_staleness: (staleness, how often).
        loss_sum, loss_samples: of the batches that were trained.
        evaluations: that are over.
        evaluating: whether an evaluation of this step is due that is not over.
        train_seconds: until the last step.
        paused: whether batches are held back by order.
        num_workers: how many are wanted.
        plan: of a stream, from the first batch that is not resolved; None: it does not grow.
        workers_automatic: whether the policy of scaling decides that.
        histories: recovery epochs that it comes from, (epoch, step at which it began), the oldest
            first: the state has the steps of each up to where the next one began, no others.
    """

    step: int
    start: Start = field(default_factory=Start)
    ledger: LedgerState
    modes: ModeState
    clock: ClockState
    data_staleness: Counts = ()
    parameter_staleness: Counts = ()
    loss_sum: float = 0.0
    loss_samples: int = 0
    evaluations: tuple[EvaluationResult, ...] = ()
    evaluating: bool = False
    train_seconds: float = 0.0
    paused: bool = False
    num_workers: int = 1
    plan: PlanState | None = None
    workers_automatic: bool = False
    histories: Counts = ()

    def __post_init__(self) -> None:
        """Raise ValueError where no job can have come to it."""
        if not 0 <= self.start.step <= self.step:
            raise ValueError(f"a job that began at step {self.start.step} is at {self.step}")
        self.clock.check(step=self.step)
        self.start.clock.check(step=self.start.step)
        counts = [*self.data_staleness, *self.parameter_staleness]
        numbers = [self.modes.epoch, self.loss_samples, self.start.optimizer_steps]
        least = min(*numbers, *(number for _, number in counts), 0)
        if least < 0 or self.num_workers < 1 or not self.train_seconds >= 0:
            raise ValueError("a count or a time is negative, or no worker is wanted")

    def entered(self, recovery_epoch: int) -> "CoordinatorState":
        """Return the state with which an epoch begins that goes on from this one."""
        before = [each for each in self.histories if each[1] < self.step]
        histories = (*before, (recovery_epoch, self.step))[-MOST_HISTORIES:]
        return replace(self, histories=histories)

    def to_json(self) -> dict[str, Any]:
        """Return it as a manifest keeps it."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> "CoordinatorState":
        """Read what a manifest keeps; raises ValueError where it is damaged."""
        try:
            return from_json(cls, data)
        except ValueError as error:
            raise ValueError(f"the state of the coordinator is damaged: {error}") from error


def epoch_of(step: int, histories: Counts) -> int | None:
    """Return the recovery epoch in which a step was ordered; None: before what is known."""
    return max((epoch for epoch, began in histories if began <= step), default=None)


def histogram_of(counts: Counts) -> Histogram:
    """Return the histogram that had these counts."""
    return Histogram(dict(counts))


def beginning_of(spec: CoordinatorSpec) -> CoordinatorState:
    """Return the state in which a job begins."""
    return CoordinatorState(
        step=spec.start.step,
        start=spec.start,
        ledger=LedgerState(),
        modes=ModeState(mode=spec.mode, automatic=spec.automatic),
        clock=spec.start.clock,
        num_workers=spec.workers,
        plan=PlanState() if spec.plan is None else None,
        workers_automatic=spec.workers_automatic,
        histories=((spec.recovery_epoch, spec.start.step),),
    )
