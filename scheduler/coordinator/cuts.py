"""When a cut is taken and whether it is written whole: a plain state machine, one cut at a time."""

from dataclasses import dataclass, field
from typing import Literal

from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.spec import CutOptions

CutKind = Literal["full", "delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A cut that is to be written, or is being written.

    Args:
        number: of the cuts of one coordinator, from 1 on.
        step: that all shards are frozen at; `kind`: what of them is written.
        asked: whether somebody asked for it.
        at: when it was taken, by the clock of who takes it; in a status in seconds since 1970.
    """

    number: int
    step: int
    kind: CutKind
    asked: bool = False
    at: float = field(default=0.0, compare=False)


class CutSchedule:
    """Decides at every boundary between two steps whether a cut is taken there.

    The first cut, one that is asked for as such, and the one after a cut that could not be written
    are full: there is nothing that a delta of them could lie on. Where all shards begin with what a
    checkpoint has, the first one may be a delta on that.

    Args:
        step, clock: where the coordinator begins.
        below: how many deltas lie on one another in that checkpoint; None: there is none.
    """

    def __init__(
        self, options: CutOptions, *, step: int, clock: int, below: int | None = None
    ) -> None:
        self.running: Cut | None = None
        self.is_frozen = False
        self._options = options
        self._number = 0
        self._step: int | None = step  # of the last cut; None: it could not be written
        self._clock = clock
        self._since: float | None = None
        self._asked = self._asked_full = False
        self._deltas_left = 0
        self._deltas_only = False
        self._has_parent = below is not None
        if below is not None:
            self._deltas_left = max(0, options.full_every - 1 - below)
        self._state: CoordinatorState | None = None

    @property
    def to_write(self) -> Cut | None:
        """The cut that every shard holds frozen and that is not written yet."""
        return self.running if self.is_frozen else None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody asked for a cut that is not written yet."""
        return self._asked or (self.running is not None and self.running.asked)

    def ask(self, *, full: bool = True) -> None:
        """Somebody wants a cut: where one is running, the next one.

        Args:
            full: that it is written whole; else it may be a delta.
        """
        self._asked = True
        self._asked_full = self._asked_full or full

    def want_deltas(self, *, only: bool) -> None:
        """Write of every cut only what has changed since the one before, where there is one.

        A full one that is asked for waits until that is over.
        """
        self._deltas_only = only

    def is_due(self, *, step: int, clock: int, now: float, ends: bool) -> bool:
        """Whether a cut is to be taken before step `step`.

        Args:
            clock: of the schedules, in ticks.
            now: in seconds of any steady clock.
            ends: whether the job is trained, so that its last checkpoint comes anyway.
        """
        if self._since is None:
            self._since = now
        if self.running is not None:
            return False
        if (self._asked_full and not self._deltas_only) or (self._asked and step != self._step):
            return True
        if ends or step == self._step:
            return False
        options = self._options
        every = options.every_steps
        if every is not None and clock // every > self._clock // every:
            return True
        return options.every_seconds is not None and now - self._since >= options.every_seconds

    def take(self, state: CoordinatorState, *, now: float) -> Cut:
        """Take the cut that is due; `state` is that of the job at its step."""
        full = self._asked_full or self._deltas_left == 0
        waits = full and self._deltas_only and self._has_parent
        if waits:
            full = False
        elif full:
            self._deltas_left = self._options.full_every - 1
        else:
            self._deltas_left -= 1
        self._number += 1
        self.running = Cut(
            number=self._number,
            step=state.step,
            kind="full" if full else "delta",
            asked=self._asked or self._asked_full,
            at=now,
        )
        self.is_frozen, self._state = False, state
        self._asked, self._asked_full = False, waits and self._asked_full
        self._step, self._clock, self._since = state.step, state.clock.value, now
        return self.running

    def frozen(self, step: int) -> None:
        """Every shard holds the cut of a step."""
        if self.running is not None and self.running.step == step:
            self.is_frozen = True

    def taken(self, step: int, *, failed: bool) -> Cut | None:
        """The cut of a step is written, or could not be; return it, None where none is running."""
        cut = self.running
        if cut is None or cut.step != step:
            return None
        self._has_parent = not failed
        if failed:
            self._deltas_left = 0
            self._step = None  # what was asked for there since is still to be taken
        self.running = self._state = None
        self.is_frozen = False
        return cut

    def state_of(self, step: int) -> CoordinatorState:
        """Return the state of the job at a cut that is being written.

        Raises:
            ValueError: no cut of that step is.
        """
        if self._state is None or self._state.step != step:
            raise ValueError(f"no cut of step {step} is being written")
        return self._state
