"""What a job's losses cost it, and when there are too many: without clocks or processes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from scheduler.errors import TrainingError

# Losses without a step in between: what causes them is in the job, or stays where it runs.
MOST_IN_A_ROW = 3
# Times that one process is lost before a step is applied. More: what Ray has not noticed yet of a
# node that is gone takes a new process or two with it.
MOST_OF_ONE = 5


RecoveryKind = Literal["loss", "preemption", "move"]
"""Something died; something died on a node that was to be taken away; something moved before."""


@dataclass(frozen=True, slots=True)
class DrainNotice:
    """A node of the job's will be taken away.

    Args:
        time: when that was noticed, seconds since 1970.
        node: its id.
        seconds_left: until it may go; None: nobody knows.
        processes: of the job that ran there.
    """

    time: float
    node: str
    seconds_left: float | None
    processes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFigures:
    """One return after a loss, or one move.

    Args:
        time: when the loss was noticed, seconds since 1970.
        cause: which processes were lost, and how; those that were lost on the way back come after
            `then`.
        from_step, to_step: that all shards were known to have reached, and at which they went on.
        redone_steps, redone_samples: that all shards were known to have applied and apply again:
            `from_step` - `to_step`, and the samples of these very steps.
        seconds: from noticing it to the first step that was applied after.
        promoted: servers whose standby took their place.
        kind: see `RecoveryKind`.
    """

    time: float
    cause: str
    from_step: int
    to_step: int
    redone_steps: int
    redone_samples: int
    seconds: float
    promoted: tuple[int, ...] = ()
    kind: RecoveryKind = "loss"

    def to_json(self) -> dict[str, Any]:
        """Return it as it comes back from JSON, so that a result is the same read again."""
        return {**asdict(self), "promoted": list(self.promoted)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMove:
    """Another number of servers, or another load on each, and the buckets that moved for it.

    Args:
        time: when it began, seconds since 1970.
        step: at which the new routing holds.
        before, after: servers.
        buckets: that moved, of 4096.
        rounds: cuts from which rows were taken, the last one included.
        rows, bytes: that were taken, those that changed meanwhile each time.
        rows_in_pause, bytes_in_pause: of these, while all stood still.
        seconds: until the first step after it; `pause_seconds` from when all were told to stand
            still.
        pause_parts: what these were spent on, one after another, in seconds: until all stood still
            (`stand_still`), the last delta was written (`write`), taken in (`take_in`), all were in
            the next epoch (`enter`), and a step was applied (`first_step`).
    """

    time: float
    step: int
    before: int
    after: int
    buckets: int
    rounds: int
    rows: int
    bytes: int
    rows_in_pause: int
    bytes_in_pause: int
    seconds: float = 0.0
    pause_seconds: float = 0.0
    pause_parts: dict[str, float] = field(default_factory=dict)

    def with_pause(self, pause: float, *, now: float) -> "ServerMove":
        """Return it as it ended, `now` in seconds since 1970."""
        parts = {**self.pause_parts, "first_step": pause - sum(self.pause_parts.values())}
        return replace(self, pause_seconds=pause, seconds=now - self.time, pause_parts=parts)

    @property
    def described(self) -> str:
        """How a person is told of it."""
        servers = f"there are {self.after} servers, there were {self.before}"
        if self.after == self.before:
            servers = f"{self.after} servers share buckets out otherwise"
        return (
            f"{servers}: {self.buckets} buckets"
            f" moved, {self.rows:,} rows in {self.seconds:.1f} s; training paused for"
            f" {self.pause_seconds:.2f} s"
        )


@dataclass(slots=True)
class _Open:
    """A return that is under way, see `RecoveryFigures`; `samples` are those of `from_step`."""

    time: float
    cause: str
    from_step: int
    samples: int
    to_step: int = 0
    redone_samples: int = 0
    promoted: tuple[int, ...] = ()
    kind: RecoveryKind = "loss"


class Recoveries:
    """The losses of one job.

    Args:
        max_failures: how many it may have (cluster.max_failures); -1: any number.
        before: those of the drivers before.

    Attributes:
        done: those that are over, in their order.
    """

    def __init__(self, max_failures: int, before: Sequence[RecoveryFigures] = ()) -> None:
        self.before = tuple(before)
        self.done: list[RecoveryFigures] = []
        self._max_failures = max_failures
        self._failures = 0
        self._open: _Open | None = None
        self._row: list[str] = []
        self._row_step = 0
        self._losses: Counter[tuple[str, int]] = Counter()

    def resumes(self, *, step: int, samples: int, now: float) -> None:
        """A driver goes on with the run of one that was lost: no failure of this one.

        Args:
            step, samples: that the run had come to, as far as is known.
            now: seconds since 1970.
        """
        self._open = _Open(now, "the driver was lost", step, samples)

    def moves(self, what: str, *, step: int, samples: int, now: float) -> None:
        """Processes move, which is no failure; before the first step after one it belongs to that.

        Args:
            what: that moves.
            step, samples: applied by all shards.
            now: seconds since 1970.
        """
        if self._open is not None:
            self._open.cause += f"; then {what}"
        else:
            self._open = _Open(now, what, step, samples, kind="move")

    def failed(
        self,
        lost: Mapping[tuple[str, int], str],
        *,
        step: int,
        samples: int,
        now: float,
        entering: bool,
        preempted: bool = False,
    ) -> None:
        """Processes are lost; one that is lost on the way back belongs to the failure before.

        Args:
            lost: what has befallen each.
            step, samples: applied by all shards, as far as is known.
            now: seconds since 1970.
            entering: whether the job was on its way back, or still starting.
            preempted: all of them were on nodes that were to be taken away, which is no failure.

        Raises:
            TrainingError: the job can't go on: why, and what happened.
        """
        cause = "; ".join(lost.values())
        is_new = not entering or self._open is None or self._open.kind == "move"
        if is_new and not preempted:
            self._failures += 1
            self._count(cause, step)
        if self._open is None:
            kind: RecoveryKind = "preemption" if preempted else "loss"
            self._open = _Open(now, cause, step, samples, kind=kind)
        else:
            if not preempted:
                self._open.kind = "loss"
            elif self._open.kind == "move":
                self._open.kind = "preemption"
            self._open.cause += f"; then {cause}"
            self._open.from_step = max(self._open.from_step, step)
            self._open.samples = max(self._open.samples, samples)
        self._losses.update(lost.keys())
        if 0 <= self._max_failures < self._failures:
            raise TrainingError(
                f"{cause}. The job can't go on: it may fail {self._max_failures} times"
                " (cluster.max_failures)"
            )
        if len(self._row) >= MOST_IN_A_ROW:
            raise TrainingError(
                f"{cause}. The job can't go on: it failed {len(self._row)} times without getting"
                f" beyond step {self._row_step}, where it failed first: {'; then '.join(self._row)}"
            )
        if max(self._losses.values()) >= MOST_OF_ONE:
            raise TrainingError(
                f"{cause}. The job can't go on: one of its processes was lost {MOST_OF_ONE} times"
                f" before a step was applied: {self._open.cause}"
            )

    def promotes(self, servers: Sequence[int]) -> None:
        """Standbys have taken the places of servers."""
        if self._open is not None:
            self._open.promoted += tuple(servers)

    @property
    def is_moving(self) -> bool:
        """Whether something has moved and no step was applied since."""
        return self._open is not None and self._open.kind == "move"

    def goes_back(self, step: int, samples: int) -> None:
        """The job goes on from this step, by which so many samples are applied."""
        if self._open is not None:
            self._open.to_step = step
            self._open.redone_samples = max(0, self._open.samples - samples)

    def reached(self, step: int, *, trained: bool, now: float) -> RecoveryFigures | None:
        """All shards have applied what is below a step; return the return that this ends, if any.

        Args:
            trained: whether nothing is left to apply.
        """
        if self._row and step > self._row_step:
            self._row = []
        found = self._open
        if found is None or not (trained or step > found.to_step):
            return None
        self._open = None
        self._losses.clear()
        self.done.append(
            RecoveryFigures(
                time=found.time,
                cause=found.cause,
                from_step=max(found.from_step, found.to_step),
                to_step=found.to_step,
                redone_steps=max(0, found.from_step - found.to_step),
                redone_samples=found.redone_samples,
                seconds=now - found.time,
                promoted=found.promoted,
                kind=found.kind,
            )
        )
        return self.done[-1]

    def _count(self, cause: str, step: int) -> None:
        if not self._row:
            self._row_step = step
        self._row.append(f"step {step}: {cause}")
