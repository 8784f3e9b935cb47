"""What a coordinator remembers of its workers and of the whole job."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from runtime.process_figures import NOT_MEASURED, ProcessFigures
from scheduler.coordinator.evaluation import EvaluationResult
from worker.protocol import Grant, Report, StageName

HoldReason = Literal["evaluation", "pause", "move"]


@dataclass(frozen=True, kw_only=True)
class WorkerFigures:
    """What a status says of one worker; sums since its process began.

    Args:
        incarnation: counts the processes that had its number.
        lost: whether its process is gone, or was told to go.
        batches, samples: that it computed and that count.
        seconds: of computing them.
        process: what it measured of itself.
    """

    incarnation: int = 0
    lost: bool = False
    batches: int = 0
    samples: int = 0
    seconds: float = 0.0
    process: ProcessFigures = NOT_MEASURED


@dataclass(slots=True)
class WorkerState:
    """What the coordinator knows of one worker.

    Args:
        lost: whether its process is gone, or was told to go.
    """

    incarnation: int = -1
    last_seen: float = 0.0
    last_grant: Grant | None = None
    lost: bool = False
    batches: int = 0
    samples: int = 0
    seconds: float = 0.0
    process: ProcessFigures = NOT_MEASURED
    stage: StageName = "none"

    def note(self, report: Report) -> None:
        """Keep what a worker measured of itself."""
        self.stage = report.stage
        if report.process is not NOT_MEASURED:  # relays pass it on seldom
            self.process = report.process

    def figures(self) -> WorkerFigures:
        """Return what a status says of it."""
        return WorkerFigures(
            incarnation=self.incarnation,
            lost=self.lost,
            batches=self.batches,
            samples=self.samples,
            seconds=self.seconds,
            process=self.process,
        )


@dataclass(slots=True)
class Progress:
    """Sums over the whole job, from which reports take differences."""

    loss_sum: float = 0.0
    loss_samples: int = 0
    evaluations: list[EvaluationResult] = field(default_factory=list)


class ShardProgress:
    """How far the copies of the shards are with what was ordered.

    `steps` are those that each has reached, by its number, `step` the one that all have;
    `unapplied` batches, and `unapplied_samples` that count as applied, are of steps that some copy
    has not applied.

    Args:
        copies: their numbers.
        first_step: that all of them begin at.
    """

    def __init__(self, copies: Iterable[int], *, first_step: int = 0) -> None:
        self.steps = dict.fromkeys(copies, first_step)
        self.step = first_step
        self.unapplied = self.unapplied_samples = 0
        # Steps that some copy has not applied, in order, with the batches and samples of each.
        self._ordered: deque[tuple[int, int, int]] = deque()

    def ordered(self, step: int, batches: int, samples: int) -> None:
        """A step of so many batches is ordered; they come in their order.

        Args:
            samples: that it applies.
        """
        self._ordered.append((step, batches, samples))
        self.unapplied += batches
        self.unapplied_samples += samples

    def applied(self, shard: int, step: int) -> bool:
        """A copy has reached a step; return whether that brings all of them further."""
        before = self.step
        self.steps[shard] = max(self.steps[shard], step)
        self.step = min(self.steps.values())
        while self._ordered and self._ordered[0][0] < self.step:
            _, batches, samples = self._ordered.popleft()
            self.unapplied -= batches
            self.unapplied_samples -= samples
        return self.step > before


class TrainingTime:
    """Seconds of training: from the first lease on, without the time in which it was held.

    An evaluation holds the steps as they are, a pause holds the batches back, and a move of the job
    both.

    Args:
        before: seconds that the job trained under an earlier coordinator.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.begun: float | None = None
        self.at_last_apply = before
        self._before = before
        self._held = 0.0
        self._held_since = 0.0
        self._reasons: set[HoldReason] = set()

    def begin(self, now: float) -> bool:
        """The first batch is given out; return whether it is news."""
        if self.begun is not None:
            return False
        self.begun = self._held_since = now
        self._held = 0.0  # what held before was no time of training
        return True

    def hold(self, reason: HoldReason, now: float) -> None:
        """Stop the watch; reasons may overlap."""
        if not self._reasons:
            self._held_since = now
        self._reasons.add(reason)

    def hold_if(self, held: bool, reason: HoldReason, now: float) -> None:
        """Hold for a reason, or go on."""
        (self.hold if held else self.go_on)(reason, now)

    def go_on(self, reason: HoldReason, now: float) -> None:
        """A reason is gone."""
        if self._reasons == {reason}:
            self._held += now - self._held_since
        self._reasons.discard(reason)

    def is_held_by(self, *reasons: HoldReason) -> bool:
        """Whether any of these reasons holds."""
        return bool(self._reasons) and not self._reasons.isdisjoint(reasons)

    def applied(self, now: float) -> None:
        """Every shard has applied another step: until now it was training, held or not."""
        if self._reasons:
            self._held_since = now
        self.at_last_apply = self.elapsed(now)

    def elapsed(self, now: float) -> float:
        """Return the seconds so far."""
        if self.begun is None:
            return self._before
        held = self._held + (now - self._held_since if self._reasons else 0.0)
        return self._before + max(0.0, now - self.begun - held)
