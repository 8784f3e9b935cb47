"""What a worker does next with the tokens it holds: a state machine without threads or clocks.

A batch is prepared ahead (read and de-duplicated) but pulled late, when the compute slot is free,
and where workers are few when the own last batch is in the step that it completed: an early pull
would only make the gradient stale. A pull that has to wait for its step leaves the slot free for a
batch of an earlier step, so a worker that parked on the next step can still take over what a dead
one left undone.
"""

import enum
from dataclasses import dataclass

from ps.messages.pull_push import ANY_STEP
from runtime.process_figures import NOT_MEASURED, ProcessFigures
from worker.protocol import (
    MAX_SCORES,
    MAX_TOKENS,
    Finished,
    Grant,
    Report,
    StageName,
    TaskScores,
    Token,
    TokenKind,
)

# Of what is told of a sample, and of a segment beside its name: a batch's scores in one report.
_SCORE_BYTES, _SEGMENT_BYTES = 5, 24

Identity = tuple[TokenKind, int, int]


class Stage(enum.Enum):
    """How far a token is."""

    GRANTED = "granted"
    PREPARED = "prepared"
    PULLING = "pulling"
    PULLED = "pulled"
    PUSHING = "pushing"


@dataclass(slots=True)
class _Held:
    token: Token
    stage: Stage

    @property
    def leaves_its_place(self) -> bool:
        """Whether nothing has to be prepared for it any more, and nothing keeps it."""
        if self.stage in (Stage.PULLING, Stage.PULLED):
            return self.token.at_step == ANY_STEP
        return self.stage is Stage.PUSHING


class Session:
    """The tokens of one worker, in one recovery epoch: another one needs another session.

    Args:
        worker: its number.
        incarnation: which process with that number this is.
        depth: how many batches are prepared ahead of the one being computed; may be changed.
        recovery_epoch: what is answered in another one is not for this session.

    `read_from`: as of the last answer, see `worker.protocol.Grant`; `outdated`: the coordinator is
    in a later epoch.
    """

    def __init__(
        self, worker: int, incarnation: int, *, depth: int, recovery_epoch: int = 0
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.depth = depth
        self.recovery_epoch = recovery_epoch
        self.stopped = False
        self.outdated = False
        self.read_from = ANY_STEP
        self._held: dict[Identity, _Held] = {}
        self._finished: list[Finished] = []
        self._reported: tuple[Finished, ...] = ()
        self._sequence = 0
        self._answered = 0

    # Events -----------------------------------------------------------------------------------

    def granted(self, grant: Grant) -> list[Token]:
        """Take the answer to the last report, once; return the tokens to prepare."""
        if grant.recovery_epoch != self.recovery_epoch:
            self.outdated = self.outdated or grant.recovery_epoch > self.recovery_epoch
            return []
        if grant.sequence != self._sequence or self._answered == self._sequence:
            return []
        self._answered = self._sequence
        self._reported = ()
        self.stopped = self.stopped or grant.stop
        self.read_from = grant.read_from
        for identity in grant.revoked:
            self._held.pop(identity, None)
        for token in grant.tokens:
            self._held[token.identity] = _Held(token, Stage.GRANTED)
        return list(grant.tokens)

    def prepared(self, token: Token) -> None:
        """The batch is read and de-duplicated."""
        self._move(token, Stage.GRANTED, Stage.PREPARED)

    def pulled(self, token: Token) -> None:
        """Every shard has answered the pull."""
        self._move(token, Stage.PULLING, Stage.PULLED)

    def finished(self, finished: Finished) -> None:
        """The attempt has ended, in whatever stage it was."""
        if self._held.pop(finished.token.identity, None) is not None:
            self._finished.append(finished)

    def not_before(self, token: Token) -> int:
        """Return the earliest step that the token's pull may read, or ANY_STEP."""
        return self.read_from if token.at_step == ANY_STEP else ANY_STEP

    def holds(self, token: Token) -> bool:
        """Whether the token is still wanted; it may have been revoked meanwhile."""
        return token.identity in self._held

    # Decisions --------------------------------------------------------------------------------

    def next_pull(self) -> Token | None:
        """Return the token to pull now, if any; it is then being pulled."""
        prepared = self._in(Stage.PREPARED)
        if not prepared or self._in(Stage.PULLED):
            return None
        candidate = min(prepared)
        if any(open_token.step <= candidate.step for open_token in self._in(Stage.PULLING)):
            return None
        if self.not_before(candidate) != ANY_STEP and not self._is_answered:
            return None
        self._held[candidate.identity].stage = Stage.PULLING
        return candidate

    def next_compute(self) -> Token | None:
        """Return the token to compute now, if any; it is then being pushed."""
        pulled = self._in(Stage.PULLED)
        if not pulled:
            return None
        token = min(pulled)
        self._held[token.identity].stage = Stage.PUSHING
        return token

    def report(self, process: ProcessFigures = NOT_MEASURED) -> Report:
        """Return the next report; what it says has ended is said again until it is answered.

        Args:
            process: what the worker measured of itself.
        """
        self._say_what_fits()
        self._sequence += 1
        return Report(
            worker=self.worker,
            incarnation=self.incarnation,
            sequence=self._sequence,
            # What has ended and is not said yet is not to be taken for lost.
            held=(*self._held, *(finished.token.identity for finished in self._finished)),
            finished=self._reported,
            want=self.want,
            waiting=self.waiting,
            recovery_epoch=self.recovery_epoch,
            stage=self._first_stage,
            process=process,
        )

    @property
    def has_news(self) -> bool:
        """Whether a report would say that something has ended."""
        return bool(self._finished)

    @property
    def is_busy(self) -> bool:
        """Whether there is a batch that is pulled, computed or pushed."""
        return any(map(self._in, (Stage.PULLING, Stage.PULLED, Stage.PUSHING)))

    @property
    def preparing(self) -> bool:
        """Whether there is no batch to pull, but one that will be when it is prepared."""
        return bool(self._in(Stage.GRANTED)) and not self._in(Stage.PREPARED)

    @property
    def want(self) -> int:
        """How many more tokens can be prepared.

        A pull that no step holds up is as good as computed, and so is one that the answer to the
        next report sets free: so that the report of one batch asks for the next, and a second
        report for it alone is not needed.
        """
        staying = sum(not held.leaves_its_place for held in self._held.values())
        prepared = self._in(Stage.PREPARED)
        if prepared and not self.is_busy and self.not_before(min(prepared)) != ANY_STEP:
            staying -= 1
        known = len(self._held) + len(self._finished) + len(self._reported)
        # One that can't be waited for may come on top.
        return max(0, min(self.depth - staying, MAX_TOKENS - 1 - known))

    @property
    def waiting(self) -> bool:
        """Whether the compute slot is free and stays so until an open pull is answered."""
        pulling = self._in(Stage.PULLING)
        if not pulling or self._in(Stage.PULLED):
            return False
        if any(token.at_step == ANY_STEP for token in pulling):
            return False  # its step is ordered already
        ahead = self._in(Stage.GRANTED) + self._in(Stage.PREPARED)
        return not any(token.step < min(pulling).step for token in ahead)

    def _say_what_fits(self) -> None:
        """Add what has ended to the report, as far as the scores of evaluations fit."""
        said = list(self._reported)
        scores = sum(map(_num_scores, said))
        for finished in self._finished:
            scores += _num_scores(finished)
            if said and scores > MAX_SCORES:
                break
            said.append(finished)
        del self._finished[: len(said) - len(self._reported)]
        self._reported = tuple(said)

    @property
    def _first_stage(self) -> StageName:
        first = min(self._held.values(), key=lambda held: held.token, default=None)
        return "none" if first is None else first.stage.value

    @property
    def _is_answered(self) -> bool:
        """Whether the coordinator has answered what it was told of all batches that ended."""
        return not (self._finished or self._reported or self._in(Stage.PUSHING))

    def _in(self, stage: Stage) -> list[Token]:
        return [held.token for held in self._held.values() if held.stage is stage]

    def _move(self, token: Token, before: Stage, after: Stage) -> None:
        held = self._held.get(token.identity)
        if held is not None and held.stage is before:
            held.stage = after


def _num_scores(finished: Finished) -> int:
    scores = finished.evaluation
    if scores is None:
        return 0
    each: tuple[TaskScores, ...] = (scores, *scores.others)
    is_plain = scores.weights is None and scores.segments is None
    times = 4 if scores.groups is not None else 1 if is_plain else 2
    names = [name for t in each if t.segments is not None for name in t.segments.names]
    told = sum(len(name.encode()) + _SEGMENT_BYTES for name in names)
    return times * sum(task.bins.size for task in each) + told // _SCORE_BYTES
