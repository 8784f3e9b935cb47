"""The driver of a simulated job: it has cuts written, and begins recovery epochs after losses.

As `scheduler.driver` does it with real processes: a lost shard that has no standby takes all of
them back to the newest cut, or to the job's beginning; after a lost coordinator the shards go on
where they are, and so they do where standbys take the places of what is lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ps.messages.exchange import Request
from ps.shard.facts import ShardFacts
from ps.shard.shard import Outgoing, Shard
from ps.spec import StoreSpec
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState, beginning_of
from scheduler.coordinator.events import CutTaken, CutWanted, Event, HoldWanted
from scheduler.coordinator.rebuilding import with_orders
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.status import Status, status_of
from simulation.copying import Copying
from simulation.cuts import CutWriting, KeptCut
from simulation.parts import Parts
from simulation.referee import Referee, require
from simulation.resizing import Incoming, Resizing, takes_over
from simulation.scenario import Scenario
from simulation.world import Action, World

NOTICED_SECONDS = 0.5
# Of a process that may still live.
GIVEN_UP_SECONDS = 3.0
CALL_SECONDS = 0.1


class Unwatched:
    """Sees what shards take while a recovery is under way, and has nothing to say to it."""

    def shard_took(
        self, shard: int, sender: int, message: Request, outgoing: list[Outgoing]
    ) -> None:
        pass


class Job(Protocol):
    """What the driver has hold of."""

    world: World
    scenario: Scenario
    shards: list[Shard]
    standbys: dict[int, Shard]
    coordinator: Coordinator
    referee: Referee
    recovery_epoch: int
    begins_with: KeptCut | None
    incoming_class: type[Incoming]

    @property
    def is_down(self) -> bool:
        """Whether there is no coordinator at the moment."""

    @property
    def store(self) -> StoreSpec:
        """The store of this recovery epoch."""

    def go_by(self, store: StoreSpec) -> None:
        """Who begins from now on goes by another routing."""

    def spec(self) -> CoordinatorSpec:
        """Return what the coordinator of this recovery epoch is told."""

    def handle(self, event: Event) -> object:
        """Tell the coordinator something."""

    def stop_coordinator(self) -> None:
        """The coordinator takes and sends nothing any more, and nobody is watched."""

    def replace_shard(self, index: int) -> None:
        """A new process takes the place of a shard, which is lost or ends; it is fenced."""

    def fenced_shard(self, index: int) -> Shard:
        """Return a new process."""

    def promote(self, index: int) -> None:
        """A shard's standby takes the place of its primary, which is lost."""

    def end_standby(self, index: int) -> None:
        """A shard has no standby any more."""

    def join(self, index: int, standby: Shard) -> None:
        """A process is the standby of a shard from now on."""

    def begin_shard(self, shard: Shard) -> None:
        """Give a shard the state in which the job began."""

    def begin_coordinator(self, state: CoordinatorState, step: int) -> None:
        """A coordinator goes on from a state, with all that happened before that step."""


@dataclass(slots=True)
class _Move:
    """Something is to move: whether the cut that it needs was asked for."""

    asks: bool = False


class Driver:
    """Watches one job.

    Attributes:
        recovering: whether an epoch is about to begin.
        rebuilt: whether a coordinator was made again from its shards: its histories have gaps.
        cuts: that were written, the newest one last; `failed` could not be.
        promotions: standbys that took the place of their primary.
        copying: makes standbys that are missing.
        moved: how often something moved.
    """

    def __init__(self, job: Job, parts: Parts, *, cut_fails: float, copy_fails: float) -> None:
        self.recovering = False
        self.rebuilt = False
        self.failed = 0
        self.promotions = 0
        self.copying = Copying(job, fails=copy_fails)
        self.moved = 0
        self.resizing = Resizing(job)
        self.cuts: list[KeptCut] = []
        self._job = job
        self._parts = parts
        self._cut_fails = cut_fails
        self._lost: set[int] = set()  # copies of shards, by number
        self._restoring = False
        self._writing = (0, 0)  # which cut, by epoch and number
        self._move: _Move | None = None
        self._saved_step: int | None = None  # of the newest cut in this epoch
        self._known: Status | None = None
        # With which each epoch's coordinator began.
        self._begun = {job.recovery_epoch: beginning_of(job.spec())}

    @property
    def is_busy(self) -> bool:
        """Whether something is lost, noticed or not."""
        return self.recovering or bool(self._lost)

    # Cuts -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask the coordinator how things are; have a cut written that is frozen."""
        job = self._job
        self._known = status_of(job.coordinator)
        if self._move is not None and self._goes_on_moving(self._move, self._known):
            return
        resizes = self.resizing.is_busy and self._move is None
        if resizes and self.resizing.look(self._known, self._parts.stands_still):
            self._resize_now()
            return
        if not (resizes or self._known.trained) and self.copying.look():
            self._join()
            return
        cut, epoch = self._known.cut, job.recovery_epoch
        if cut is None or self._writing == (epoch, cut.number):
            return
        self._writing = epoch, cut.number

        def written(kept: KeptCut | None) -> None:
            job.world.story.tell("%s is written: %s", cut, kept is not None)
            if kept is None:
                self.failed += 1
                job.referee.cut_failed()
                self._saved_step = None
                self.copying.cut_failed()
                self.resizing.cut_failed()
                if self._move is not None and self._move.asks:
                    self._stay()
            else:
                job.referee.cut_written(kept)
                self.cuts.append(kept)
                self._saved_step = cut.step
                self.copying.cut_written(kept)
                self.resizing.cut_written(kept)
            self._later(partial(self._tell, CutTaken(cut.step, failed=kept is None)))

        CutWriting(
            job.world,
            job.shards,
            cut,
            job.coordinator.cuts.state_of(cut.step),
            below=self.cuts[-1] if self.cuts else None,
            fails=job.world.random.random() < self._cut_fails,
            is_over=lambda: job.recovery_epoch != epoch or bool(self._lost),
            written=written,
        )

    def _tell(self, event: Event) -> None:
        self._job.handle(event)

    # Moves ------------------------------------------------------------------------------------

    def move(self) -> None:
        """A shard or the coordinator is to go on in another process, as its node is drained."""
        if self._move is None and not self.is_busy and not self.resizing.holds:
            if self.resizing.is_busy:
                self.resizing.give_up()
            self._move = _Move()
            self._tell(HoldWanted(True))

    def resize(self) -> None:
        """Another number of the shards is to have the model."""
        job = self._job
        idle = self._move is None and not self.is_busy and not self.resizing.is_busy
        if idle and not job.coordinator.trained:
            self.resizing.begin(job.world.moves.randint(1, len(job.shards)))

    def _resize_now(self) -> None:
        """All stand still at a cut that was taken in: go by the new routing there."""
        job, cut, resizing = self._job, self.cuts[-1], self.resizing
        store = resizing.store
        assert store is not None, "it is planned"
        state = with_orders(CoordinatorState.from_json(cut.state), self._known)
        steps = {shard.step for shard in job.shards}
        require(steps == {state.step}, "a hand-over at {} redoes {}", state.step, steps)
        ready = list(resizing._incoming)
        self._begin(resized=True)
        self._restoring = True
        self.end_standbys()
        job.go_by(store)
        epoch = job.recovery_epoch
        self._begun[epoch] = state = state.entered(epoch)
        job.world.story.tell("shards go by routing %s", store.routing.version)

        def go_on(shard: Shard) -> None:
            shard.leave()
            if takes_over(ready, shard, store, state.step):
                shard.dense.restore(cut.blocks(shard))
                shard.enter(epoch, step=state.step)
                resizing.drop_later(shard)
            else:
                cut.restore(shard, epoch, store)

        self._at_each(go_on, lambda: self._begin_coordinator(state))

    def end_standbys(self) -> None:
        """All end, as they would have the buckets of before; others are made."""
        for index in sorted(self._job.standbys):
            self._job.end_standby(index)

    def _goes_on_moving(self, move: _Move, status: Status) -> bool:
        """Move once all stands still at a step that is saved; return whether it has begun."""
        if status.trained:
            self._stay()
        elif self._parts.stands_still(status, self._saved_step):
            self._move_now()
            return True
        elif not move.asks and status.held and status.step == status.applied_step:
            move.asks = True
            begun = self._begun[self._job.recovery_epoch].step
            self._tell(CutWanted(full=status.step == begun))
        return False

    def _stay(self) -> None:
        self._move = None
        self._tell(HoldWanted(False))

    def _move_now(self) -> None:
        job, cut = self._job, self.cuts[-1]
        steps = {shard.step for shard in job.shards}
        state = with_orders(CoordinatorState.from_json(cut.state), self._known)
        require(steps == {state.step}, "a move to step {} redoes steps of {}", state.step, steps)
        self._begin()
        self._restoring = True
        self.moved += 1
        moving = job.world.moves.randrange(-1, len(job.shards))  # -1: the coordinator alone
        if moving >= 0:
            job.replace_shard(moving)
        epoch = job.recovery_epoch
        self._begun[epoch] = state = state.entered(epoch)
        job.world.story.tell("shard %s moves at step %s", moving, state.step)

        def go_on(shard: Shard) -> None:
            if shard.fenced or shard.leave().step != state.step:
                cut.restore(shard, epoch, job.store)
            else:
                shard.enter(epoch, step=shard.step)

        self._at_each(go_on, lambda: self._begin_coordinator(state))

    # Losses -----------------------------------------------------------------------------------

    def lost_shard(self, number: int) -> None:
        """A copy of a shard is dead; that is noticed some time later."""
        self._lost.add(number)
        self._job.world.queue.later(self._until_noticed(), self._replace_lost)

    def unreachable_shard(self, index: int) -> None:
        """A shard can't be reached; it is given up some time later."""
        self._lost.add(index)
        world = self._job.world
        world.queue.later(GIVEN_UP_SECONDS * world.partitions.random(), self._replace_lost)

    def lost_coordinator(self) -> None:
        """The coordinator is dead; that is noticed some time later."""
        self.recovering = True
        epoch = self._job.recovery_epoch

        def noticed() -> None:
            # One that died as it was made is there by now, and has ended the job perhaps.
            over = self._job.coordinator.stopping and not self._job.is_down
            if self._job.recovery_epoch == epoch and not over:
                self._rebuild()

        self._job.world.queue.later(self._until_noticed(), noticed)

    def _until_noticed(self) -> float:
        """Ray tells of most deaths at once, and of some late."""
        return NOTICED_SECONDS * self._job.world.random.random() ** 3

    def go_back(self) -> None:
        """All return to the newest cut, for whatever reason."""
        self._begin()
        self._back()

    def _join(self) -> None:
        """Standbys are made: enter another epoch with them."""
        self._begin()
        self._leave()

    def _begin(self, *, resized: bool = False) -> None:
        job = self._job
        self.recovering = True
        self.copying.end()
        if resized:
            self.resizing.handed_over()
        elif self.resizing.is_busy:
            self.resizing.end()
            for shard in job.shards:
                self.resizing.drop_later(shard)
        self._move, self._saved_step = None, None
        job.stop_coordinator()
        job.recovery_epoch += 1
        job.begins_with = None
        job.world.story.tell("recovery epoch %s begins", job.recovery_epoch)

    # A way back -------------------------------------------------------------------------------

    def _replace_lost(self) -> None:
        if not self._lost:
            return  # it was noticed with another one
        self._begin()
        lost, self._lost = self._lost, set()
        if self._promote(lost) and not self._restoring:
            self._leave()
        else:
            self._back()

    def _promote(self, lost: set[int]) -> bool:
        """Replace what is lost; return whether every shard still has a copy of this history."""
        job, whole = self._job, True
        n = len(job.shards)
        for number in sorted(lost, reverse=True):  # standbys first
            index = number % n
            if number >= n:
                job.end_standby(index)
            elif index in job.standbys:
                job.promote(index)
                self.promotions += 1
            else:
                job.replace_shard(index)
                whole = False
        return whole

    def _back(self) -> None:
        job = self._job
        self._restoring = True
        cut = self.cuts[-1] if self.cuts else None
        state = beginning_of(job.spec())
        if cut is not None:
            state = CoordinatorState.from_json(cut.state)
            job.begins_with = cut
        epoch = job.recovery_epoch
        self._begun[epoch] = state = with_orders(state, self._known).entered(epoch)
        job.world.story.tell("all go back to step %s", state.step)

        def restore(shard: Shard) -> None:
            if cut is None:
                job.begin_shard(shard)
            else:
                cut.restore(shard, epoch, job.store)

        self._at_each(restore, lambda: self._begin_coordinator(state))

    # The coordinator anew ---------------------------------------------------------------------

    def _rebuild(self) -> None:
        if self._lost:
            return  # all go back as soon as that is noticed
        self._begin()
        if self._restoring:
            # The coordinator died as its epoch began: some have entered it, others have not.
            self._back()
        else:
            self._leave()

    def _leave(self) -> None:
        """All copies of the shards leave their epoch, to enter the next one with what they have."""
        facts: dict[int, ShardFacts] = {}
        copies = self._copies()

        def leave(shard: Shard) -> None:
            facts[copies.index(shard)] = shard.leave()

        self._at_each(leave, lambda: self._catch_up([facts[at] for at in range(len(copies))]))

    def _copies(self) -> list[Shard]:
        return [*self._job.shards, *(shard for _, shard in sorted(self._job.standbys.items()))]

    def _catch_up(self, facts: list[ShardFacts]) -> None:
        job = self._job
        first = self._parts.longest(facts)
        furthest = self._copies()[first]

        def catch_up(shard: Shard) -> None:
            if shard.step < furthest.step:
                shard.catch_up(furthest.log_from(shard.step))

        def enter() -> None:
            for copy in self._copies():
                assert copy.step == furthest.step, f"a copy is at {copy.step}: {furthest.step}"
            for index, standby in self.copying.finished().items():
                job.join(index, standby)
            begun = self._begun[facts[first].recovery_epoch]
            state = self._parts.rebuild(facts[first], begun, self._known, job.spec())
            epoch = job.recovery_epoch
            self._begun[epoch] = CoordinatorState.from_json(state.entered(epoch).to_json())
            self.rebuilt = True
            job.world.story.tell("a coordinator is made again at step %s", state.step)
            self._at_each(
                lambda shard: shard.enter(epoch, step=shard.step),
                lambda: self._begin_coordinator(self._begun[epoch]),
            )

        self._at_each(catch_up, enter)

    # Both -------------------------------------------------------------------------------------

    def _begin_coordinator(self, state: CoordinatorState) -> None:
        self.recovering = self._restoring = False
        self._job.begin_coordinator(state, state.step)
        if self._job.scenario.standby:
            self.copying.begin()

    def _at_each(self, do: Callable[[Shard], object], then: Action) -> None:
        """Do something at every copy of a shard, one call each, and then something else.

        Nothing of it comes about any more once another epoch has begun.
        """
        job, epoch = self._job, self._job.recovery_epoch
        primaries = len(job.shards)
        copies = dict(enumerate(job.shards))
        copies |= {primaries + index: shard for index, shard in sorted(job.standbys.items())}
        waiting = set(copies)

        def call(number: int) -> None:
            if job.recovery_epoch != epoch or number in self._lost:
                return  # the call to a dead process fails: that is how a loss is noticed, too
            do(copies[number])
            waiting.discard(number)
            if not waiting:
                then()

        for number in copies:
            self._later(lambda number=number: call(number))  # type: ignore[misc]

    def _later(self, action: Action) -> None:
        self._job.world.queue.later(CALL_SECONDS * self._job.world.random.random(), action)
