"""Standbys of a simulated job that are made while it goes on, as the driver has servers do it.

One is a new process that begins with a cut of its shard, and is sent what the shard keeps in its
journal since that cut. Once all lack little the job enters another recovery epoch with them. While
buckets move the driver does not look after them: what has begun goes on, and nothing else begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ps.messages.exchange import Refusal, Request
from ps.messages.records import Apply
from ps.shard.shard import Shard
from scheduler.coordinator.events import CutWanted, Event
from simulation.cuts import KeptCut
from simulation.world import World

COME_UP_SECONDS = 0.3
MOVE_SECONDS = 0.05
AGAIN_SECONDS = 0.5
JOURNAL_BYTES = 1 << 20
# Records that are sent at once; who lacks no more can join.
AT_ONCE = 2


class Job(Protocol):
    """What the making of standbys has hold of."""

    world: World
    shards: list[Shard]
    standbys: dict[int, Shard]
    recovery_epoch: int

    def fenced_shard(self, index: int) -> Shard:
        """Return a new process."""

    def handle(self, event: Event) -> object:
        """Tell the coordinator something."""


@dataclass(slots=True)
class _Copy:
    """A standby that is being made; `began`: whether it has the state of a cut."""

    process: Shard
    began: bool = False


class Copying:
    """Makes the standbys that are missing, all at the same time.

    Args:
        fails: how likely one dies before it is made.
    """

    def __init__(self, job: Job, *, fails: float) -> None:
        self.made = 0
        self._job = job
        self._fails = fails
        self._round = 0
        self._copies: dict[int, _Copy] = {}
        self._next: Callable[[], object] | None = None  # for when the driver looks
        self._cut: KeptCut | None = None  # that was written since one was asked for

    def begin(self) -> None:
        """A recovery epoch has begun: make what is missing in it."""
        self.end()
        self._copies = {}
        missing = [i for i in range(len(self._job.shards)) if i not in self._job.standbys]
        if missing:
            self._later(COME_UP_SECONDS, lambda: self._at_look(partial(self._create, missing)))

    def end(self) -> None:
        """The recovery epoch is over: what is made may join the next one, if it can be finished."""
        self._round += 1
        self._next = self._cut = None

    def look(self) -> bool:
        """Go on with what can be done; return whether the job can enter an epoch with all."""
        if self._next is not None:
            act, self._next = self._next, None
            act()
        cut, self._cut = self._cut, None
        if cut is not None:
            self._begin_with(cut)
        copies = self._copies.items()
        return bool(copies) and all(c.began and self._lacks(i) <= AT_ONCE for i, c in copies)

    def _at_look(self, act: Callable[[], object]) -> None:
        self._next = act

    def cut_written(self, kept: KeptCut) -> None:
        """A cut is there: those that are to begin with one do so when the driver looks."""
        if any(not copy.began for copy in self._copies.values()):
            self._cut = kept

    def _begin_with(self, kept: KeptCut) -> None:
        for index, copy in self._copies.items():
            if copy.began:
                continue
            try:
                evicted = self._job.shards[index].copy_from(kept.cut.step)
            except RuntimeError:  # it keeps what came since another cut
                self._later(AGAIN_SECONDS, lambda: self._at_look(self._again))
                return
            epoch = self._job.recovery_epoch
            kept.restore(copy.process, epoch)
            copy.process.take_evicted(evicted)
            copy.began = True
            self._job.world.story.tell("a copy of shard %s begins at %s", index, kept.cut.step)
            self._later(MOVE_SECONDS, lambda index=index: self._send(index))  # type: ignore[misc]

    def cut_failed(self) -> None:
        """A cut could not be written: the next one will do."""
        if any(not copy.began for copy in self._copies.values()):
            ask = partial(self._job.handle, CutWanted(full=False))
            self._later(AGAIN_SECONDS, lambda: self._at_look(ask))

    def finished(self) -> dict[int, Shard]:
        """Return the standbys that are made, once their shards take nothing more.

        They are brought to where these are; one whose shard is another process now is left out.
        """
        found = {}
        for index, copy in self._copies.items():
            shard = self._job.shards[index]
            if not copy.began or shard.journal is None or shard.recovery_epoch is None:
                continue
            if shard.journal.is_over or copy.process.recovery_epoch != shard.recovery_epoch:
                continue
            while len(shard.journal):
                self._pass_on(shard, copy.process)
            assert copy.process.step == shard.step, f"a copy of shard {index} is behind"
            found[index] = copy.process
        self.made += len(found)
        self._copies = {}
        return found

    # Inside -----------------------------------------------------------------------------------

    def _create(self, missing: list[int]) -> None:
        for index in missing:
            self._copies[index] = _Copy(self._job.fenced_shard(index))
            self._job.shards[index].keep_journal(JOURNAL_BYTES)
        self._job.handle(CutWanted(full=False))

    def _again(self) -> None:
        missing = list(self._copies)
        self.end()
        self._copies = {}
        self._create(missing)

    def _send(self, index: int) -> None:
        copy, shard = self._copies[index], self._job.shards[index]
        if self._job.world.random.random() < self._fails:
            self._job.world.story.tell("the copy of shard %s dies", index)
            self._later(AGAIN_SECONDS, lambda: self._at_look(self._again))
            return
        journal = shard.journal
        assert journal is not None, "it is kept until another epoch begins"
        self._pass_on(shard, copy.process)
        self._later(MOVE_SECONDS, lambda: self._send(index))

    def _lacks(self, index: int) -> int:
        journal = self._job.shards[index].journal
        return AT_ONCE + 1 if journal is None else len(journal)

    def _pass_on(self, shard: Shard, process: Shard) -> None:
        journal = shard.journal
        assert journal is not None, "it is kept"
        entries = journal.first(AT_ONCE)
        for applied in entries:
            apply = Apply(0, applied.record.recovery_epoch, (applied.record,))
            messages: list[Request] = [*applied.contributions, apply]
            for message in messages:
                (out,) = process.handle(message, "copy")
                assert not isinstance(out.reply, Refusal), out.reply
        journal.drop(len(entries))

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        number = self._round
        world = self._job.world

        def act() -> None:
            if self._round == number:
                action()

        world.queue.later(seconds * world.random.random(), act)
