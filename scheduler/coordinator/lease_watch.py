"""Notices workers that report, but whose batch does not end."""

from dataclasses import dataclass

from scheduler.coordinator.batches import Batch, Status
from worker.protocol import Report, StageName, TokenKind

_LEASED = Status.LEASED  # looked up once, see `batches`

# A batch may take so many times as long as the longest of those that ended lately,
FACTOR = 4.0
# which are the last WINDOW of them, up to twice as many.
WINDOW = 1024
# How often they are looked at, in parts of the least time limit.
_LOOKS = 32
# The most that is measured, in parts of the time of a stall. The job fails after twice that time: a
# worker that takes over has to have twice the limit before, and time to begin.
_MOST = 0.75
# So a stall lasts at least so many times the least limit.
_STALL = 3.0

# What the first token of a worker can be at once the thread that computes has begun with it.
BEGUN: tuple[StageName, ...] = ("pulling", "pulled", "pushing")

_DOING: dict[StageName, str] = {
    "none": "",
    "granted": ", which it reads",
    "prepared": ", which it has read",
    "pulling": ", whose rows it waits for",
    "pulled": ", whose rows it has",
    "pushing": ", which it computes or pushes",
}


@dataclass(slots=True)
class _Work:
    """What a worker works at: one attempt at a batch, since when.

    `taken`: whether it was taken from the worker, which may be at it all the same, and `idle`:
    whether there is nothing that it could do instead.
    """

    kind: TokenKind
    batch: Batch
    attempt: int
    step: int
    since: float
    taken: bool = False
    idle: bool = False

    def is_held_by(self, worker: int) -> bool:
        batch = self.batch
        leased = batch.worker == worker and batch.status is _LEASED
        return leased and batch.attempt == self.attempt

    def is_left(self, report: Report) -> bool:
        """Whether a worker does not name it any more, and has begun or ended something since."""
        if (self.kind, self.batch.batch_id, self.attempt) in report.held:
            return False
        return not self.taken or bool(report.finished) or report.stage in BEGUN


class _LongestLately:
    """The longest time of the last WINDOW to 2 x WINDOW batches; 0.0 before the first."""

    def __init__(self) -> None:
        self._now = self._before = 0.0
        self._count = 0

    def add(self, seconds: float) -> None:
        if self._count == WINDOW:
            self._before, self._now, self._count = self._now, 0.0, 0
        self._now = max(self._now, seconds)
        self._count += 1

    @property
    def seconds(self) -> float | None:
        """None: no batch has ended."""
        return max(self._now, self._before) if self._count else None


class LeaseWatch:
    """Measures how long workers are at their batches, and says who is too long at one.

    A worker works at the lowest of its batches, from when its pull can be answered. Where that one
    is taken from it, as its step could not wait, a worker that hangs does nothing with the next:
    it is still at that one until it has begun another, or ended one. The time limit
    is FACTOR times what batches took lately, from the least to the most, and doubled with each
    time that the same batch was too late: so one that is merely slow ends at last. Before the first
    batch has ended it is the most. Only one worker is late within `least` seconds: where all stand
    still, as their store does, replacing all of them would help nobody.

    Args:
        least: in seconds; None: nobody is ever late.
        stall: seconds without progress after which the job is said to stall, see `StallWatch`; the
            most is three quarters of it.
    """

    def __init__(self, least: float | None, *, stall: float) -> None:
        self._least = least
        self._most = _MOST * stall
        self._works: dict[int, _Work] = {}
        self._longest: dict[TokenKind, _LongestLately] = {
            "train": _LongestLately(),
            "eval": _LongestLately(),
        }
        self._looked_at: float | None = None
        self._late_at: float | None = None
        self._applied_step = -1

    @property
    def stall_lasts(self) -> float:
        """For so many seconds at least nothing may move, until the second at a batch is late."""
        return _STALL * (self._least or 0.0)

    def works_at(self, report: Report, work: tuple[TokenKind, Batch] | None, now: float) -> None:
        """Who reported is at a batch; None: it has none, or what it has waits for others."""
        worker = report.worker
        known = self._works.get(worker)
        held = known is not None and known.is_held_by(worker)
        if known is not None and not held and not known.is_left(report):
            known.taken, known.idle = True, work is None
        elif work is None:
            self._works.pop(worker, None)
        elif known is None or not held or known.batch is not work[1]:
            kind, batch = work
            self._works[worker] = _Work(kind, batch, batch.attempt, batch.step, now)

    def ended(self, worker: int, kind: TokenKind, batch_id: int, now: float) -> None:
        """A worker has ended a batch, with an attempt that counts."""
        work = self._works.get(worker)
        if work is not None and work.batch.batch_id == batch_id and work.kind == kind:
            if not work.taken:
                self._longest[kind].add(now - work.since)
            del self._works[worker]

    def gone(self, worker: int) -> None:
        """A worker is gone."""
        self._works.pop(worker, None)

    def look(self, now: float, *, step: int, applied_step: int, held: bool) -> int | None:
        """Return the worker that is too long at its batch, if any; it counts as gone from then on.

        Args:
            step, applied_step: that are ordered, and that every shard has reached. Where shards are
                behind and don't move, the time is nobody's.
            held: whether a pause holds the job; that time is nobody's either.
        """
        if self._least is None:
            return None
        before = now if self._looked_at is None else self._looked_at
        if now - before < self._least / _LOOKS and self._looked_at is not None:
            return None
        stuck = applied_step < step and applied_step == self._applied_step
        self._looked_at, self._applied_step = now, applied_step
        for work in self._works.values():
            if held or stuck or work.idle:
                work.since = min(now, work.since + now - before)
        if held or stuck:
            return None
        if self._late_at is not None and now - self._late_at < self._least:
            return None
        late = [
            (now - work.since - limit, worker)
            for worker, work in self._works.items()
            if now - work.since > (limit := self._limit(work, self._least))
            and (work.taken or work.is_held_by(worker))
        ]
        return max(late)[1] if late else None

    def give_up(self, worker: int, now: float, stage: StageName) -> str:
        """A worker that is late is given up: its batch may take longer next time; return why."""
        work = self._works.pop(worker)
        self._late_at = now
        longest = self._longest[work.kind].seconds
        usual = (
            "none has ended yet" if longest is None else f"the longest lately took {longest:.2f} s"
        )
        doing = ", which was taken from it meanwhile," if work.taken else _DOING[stage]
        text = (
            f"worker {worker} has been at {work.kind} batch {work.batch.batch_id} (step"
            f" {work.step}, attempt {work.attempt}){doing} for"
            f" {now - work.since:.0f} s; {usual} (cluster.lease_timeout_seconds)"
        )
        work.batch.times_late += 1
        return text

    def _limit(self, work: _Work, least: float) -> float:
        longest = self._longest[work.kind].seconds
        measured = self._most if longest is None else min(FACTOR * longest, self._most)
        return max(least, measured) * 2.0**work.batch.times_late
