"""What a worker and the coordinator say to each other, and nothing else."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ps.messages.pull_push import ANY_STEP
from runtime.process_figures import NOT_MEASURED, ProcessFigures
from worker.data.arrived import BatchRows

TokenKind = Literal["train", "eval"]
Outcome = Literal["done", "skipped", "superseded"]
SkipReason = Literal["bad_file", "non_finite"]
StageName = Literal["none", "granted", "prepared", "pulling", "pulled", "pushing"]

# Most tokens that one report or grant names, so that a worker can know of.
MAX_TOKENS = 1 << 14
# Samples whose scores are in one report, at 5 bytes each. Those with weights or segments take up to
# 10 and count twice, those with groups up to 18 and four times, and those of several tasks once for
# each; what is said of segments counts by its bytes. A batch that is scored has no more samples.
MAX_SCORES = 1 << 21


# None of these is frozen: nobody changes one, and a frozen one takes 15 times as long to make.


@dataclass(slots=True, order=True, unsafe_hash=True)
class Token:
    """The right to train (or evaluate) one local batch.

    Args:
        step: t, the global step that would use the batch in synchronous training, or the one at
            which it had to be given out again.
        batch_id: of the plan.
        attempt: how often the batch was given out before.
        at_step: the step that its pull must read, or `ps.messages.pull_push.ANY_STEP`.
        mode_epoch: raised by every change of mode.
    """

    step: int
    batch_id: int
    attempt: int
    at_step: int
    mode_epoch: int = 0
    kind: TokenKind = "train"

    @property
    def identity(self) -> tuple[TokenKind, int, int]:
        return self.kind, self.batch_id, self.attempt


@dataclass(frozen=True, slots=True)
class SegmentScores:
    """Scores of a batch by segment.

    Args:
        names: of the segments in it.
        of: uint8[n], the position of each sample's among the names; more: it has none of them.
        log_loss_sums, probability_sums: float64[names + 1], as those of the batch, of the samples
            of each segment, and of those of none.
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.uint8]
    log_loss_sums: npt.NDArray[np.float64]
    probability_sums: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task on a batch, in a form whose sum does not depend on the order.

    Args:
        bins: int32[n], the AUC bin of each sample that counts in the task.
        positive: bool[n], its label.
        log_loss_sum: over the samples, in their order.
        probability_sum: of the predictions.
        weights: float32[n], of the samples, by which both sums are weighted; None: all are 1.
        groups: int64[n], of the samples, where they are ranked apart; NO_GROUP: in none.
        segments: where samples are scored by segment, too.
    """

    bins: npt.NDArray[np.int32]
    positive: npt.NDArray[np.bool_]
    log_loss_sum: float
    probability_sum: float = 0.0
    weights: npt.NDArray[np.float32] | None = None
    groups: npt.NDArray[np.int64] | None = None
    segments: SegmentScores | None = None


@dataclass(frozen=True, slots=True)
class Evaluation(TaskScores):
    """Scores of one evaluated batch: of its one task, or of the first of several.

    Args:
        others: of the other tasks, in the job's order.
    """

    others: tuple[TaskScores, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class Finished:
    """The end of one attempt.

    Args:
        samples: samples in the contribution; every shard has acknowledged it.
        skipped: planned samples that could not be used.
        reason: of the skipped samples.
        loss_sum: of the samples' training losses.
        pull_step: the oldest step among the shards when the batch was pulled.
        seconds: from the pull's reply to the end of the computation.
        started_at: when the computation began, seconds since 1970; 0: not measured.
        buffer_bytes: what its largest part takes in a shard's buffer.
        evaluation: of an evaluation batch; in a job that evaluates progressively of every batch.
    """

    token: Token
    outcome: Outcome
    samples: int = 0
    skipped: int = 0
    reason: SkipReason | None = None
    loss_sum: float = 0.0
    pull_step: int = 0
    seconds: float = 0.0
    started_at: float = 0.0
    buffer_bytes: int = 0
    evaluation: Evaluation | None = None


@dataclass(slots=True, unsafe_hash=True)
class Report:
    """One call of a worker: heartbeat, what ended, what it holds, what it wants.

    Args:
        worker: its number; `incarnation` counts the processes that had this number.
        recovery_epoch: that its tokens are of.
        sequence: raised by one with every report; a repeated one gets the same answer again.
        held: identities of the tokens it works on.
        want: how many more it can prepare.
        waiting: its compute slot is free and every batch it holds waits for a later step.
        process: what it measured of itself; its stages are `worker.loop.STAGES`.
        stage: how far the first of the tokens is that it holds, see `worker.session.Stage`.
    """

    worker: int
    incarnation: int
    sequence: int
    held: tuple[tuple[TokenKind, int, int], ...] = ()
    finished: tuple[Finished, ...] = ()
    want: int = 0
    waiting: bool = False
    process: ProcessFigures = NOT_MEASURED
    recovery_epoch: int = 0
    stage: StageName = "none"


@dataclass(slots=True, unsafe_hash=True)
class Grant:
    """The answer to a report: new tokens, tokens to drop, and whether all is over.

    Args:
        read_from: pulls that may read any step wait for this one, which has what the report said
            has ended, unless its step is not complete or held by an evaluation or a cut; and so
            they wait for the answer to the last batch. `ps.messages.pull_push.ANY_STEP`: they
            wait for nothing.
        recovery_epoch: that the coordinator is in; a report of another one is answered with
            nothing else.
        rows: of the training batches among the tokens, in a job whose plan grows.
    """

    sequence: int
    tokens: tuple[Token, ...] = ()
    revoked: tuple[tuple[TokenKind, int, int], ...] = ()
    stop: bool = False
    read_from: int = ANY_STEP
    recovery_epoch: int = 0
    rows: tuple[BatchRows, ...] = ()


class Coordinator(Protocol):
    """What a worker needs of the coordinator."""

    def exchange(self, report: Report) -> Grant:
        """Deliver a report and return the answer; may block for the time of one call."""
        ...

    def close(self) -> None:
        """No more reports follow."""
        ...
