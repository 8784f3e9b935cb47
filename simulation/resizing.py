"""Buckets of a simulated job that move between shards, as the driver has servers do it.

Shards that get buckets read them from a cut, and from the deltas that follow, while the job trains.
Then it stands still, a last delta is read, and all go by the new routing in the next recovery
epoch. There are always as many processes: one that has not come yet, or has gone, has no bucket.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import buckets_of
from embedding.table.variable import EmbeddingVariable
from ps.routing import Routing
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from scheduler.coordinator.events import CutWanted, DeltasWanted, Event, HoldWanted
from scheduler.coordinator.status import Status
from simulation.cuts import KeptCut
from simulation.world import World

TAKE_SECONDS = 0.03
MOST_ROUNDS = 2
DROPPED_AT_ONCE = 4  # rows that are looked at


class Incoming:
    """What comes to a shard from cuts."""

    def __init__(self, shard: Shard, store: StoreSpec) -> None:
        self.shard = shard
        self.step = -1
        self.tables: list[EmbeddingVariable] = shard.take_in()
        self.coming: npt.NDArray[np.bool_] = store.routing.buckets == shard.index
        self.coming &= shard.routing.buckets != shard.index
        self._taken: KeptCut | None = None

    def take(self, kept: KeptCut) -> None:
        """Take what a cut has beyond the one that was taken before."""
        cuts: list[KeptCut] = []
        at: KeptCut | None = kept
        while at is not None and at is not self._taken:
            cuts.append(at)
            at = at.below
        assert at is self._taken, "a cut does not lie on the one before"
        for cut in reversed(cuts):
            self.lay_on(cut)
        self._taken, self.step = kept, kept.cut.step

    def lay_on(self, cut: KeptCut) -> None:
        """Take what one cut has by itself."""
        for tables in cut.tables.values():
            for table, of_cut in zip(self.tables, tables, strict=True):
                of_cut.lay_on(table, self.coming)


class Job(Protocol):
    """What has buckets moved has hold of."""

    world: World
    shards: list[Shard]
    incoming_class: type[Incoming]

    @property
    def store(self) -> StoreSpec:
        """The store of this recovery epoch."""

    def handle(self, event: Event) -> object:
        """Tell the coordinator something."""


class Resizing:
    """Has buckets move to a number of the shards, one change at a time.

    Attributes:
        done: how often they did; `given_up`: how often something came between.
    """

    def __init__(self, job: Job) -> None:
        self.done = self.given_up = 0
        self.holds = False
        self.store: StoreSpec | None = None
        self._job = job
        self._round = 0
        self._rounds = 0
        self._asks_last = False
        self._incoming: list[Incoming] = []
        self._newest: KeptCut | None = None
        self._waiting = 0

    @property
    def is_busy(self) -> bool:
        return self.store is not None

    def begin(self, num_shards: int) -> None:
        """Share all out to the first so many shards."""
        job = self._job
        self._round += 1
        self.store = replace(job.store, uneven=shared_out(job.store.routing, num_shards))
        job.world.story.tell("buckets move to %s shards", num_shards)
        for shard in job.shards:
            drop_at_once(shard)  # what left before
        self._incoming = [job.incoming_class(shard, self.store) for shard in job.shards]
        job.handle(DeltasWanted(True))
        job.handle(CutWanted(full=False))

    def end(self) -> None:
        """Another recovery epoch begins: what was taken in is dropped, unless it holds there."""
        if self.store is not None:
            self.given_up += 1
        self._forget()

    def give_up(self) -> None:
        """Go on with the routing as it is."""
        holds = self.holds
        self.end()
        self._job.handle(DeltasWanted(False))
        if holds:
            self._job.handle(HoldWanted(False))
        for shard in self._job.shards:
            self.drop_later(shard)

    def _forget(self) -> None:
        self._round += 1
        self._rounds = self._waiting = 0
        self.holds = self._asks_last = False
        self.store, self._newest = None, None
        self._incoming = []

    def cut_written(self, kept: KeptCut) -> None:
        if self.is_busy:
            self._newest = kept

    def cut_failed(self) -> None:
        if self.is_busy:
            self.give_up()

    def look(self, status: Status, stands_still: Callable[[Status, int | None], bool]) -> bool:
        """Go on with what can be done; return whether all can go by the new routing."""
        if status.trained:
            self.give_up()
            return False
        if self._waiting:
            return False
        newest = self._newest
        if newest is not None and newest.cut.step > self._level:
            self._rounds += 1
            self._waiting = len(self._incoming)
            for incoming in self._incoming:
                self._later(self._taker(incoming, newest))
            return False
        if self.holds:
            if newest is not None and stands_still(status, self._level):
                return True
            if not self._asks_last and status.held and status.step == status.applied_step:
                self._asks_last = True
                self._job.handle(CutWanted(full=False))
        elif newest is not None and self._rounds >= MOST_ROUNDS:
            self.holds = True
            self._job.handle(HoldWanted(True))
        elif newest is not None:
            self._job.handle(CutWanted(full=False))
        return False

    @property
    def _level(self) -> int:
        return min(incoming.step for incoming in self._incoming)

    def handed_over(self) -> None:
        """All go by the new routing in the epoch that begins."""
        self.done += 1
        self._forget()

    def drop_later(self, shard: Shard) -> None:
        """Remove what a shard does not have some time later, a little at a time."""
        dropping = shard.drop_others(DROPPED_AT_ONCE)

        def drop() -> None:
            if next(dropping, self) is None:
                self._later(drop)

        self._later(drop)

    def _taker(self, incoming: Incoming, kept: KeptCut) -> Callable[[], None]:
        def take() -> None:
            self._waiting -= 1
            incoming.take(kept)

        return take

    def _later(self, action: Callable[[], None]) -> None:
        number, world = self._round, self._job.world

        def act() -> None:
            if self._round == number:
                action()

        world.queue.later(TAKE_SECONDS * world.moves.random(), act)


def shared_out(routing: Routing, num_shards: int) -> Routing:
    """Return the next version, in which the first so many shards have all, and others nothing."""
    used = replace(routing, num_shards=max(routing.num_shards, num_shards))
    spread = used.spread_over(num_shards)
    return replace(spread, num_shards=routing.num_shards)


def takes_over(incoming: list[Incoming], shard: Shard, store: StoreSpec, step: int) -> bool:
    """Have a shard that has left its epoch go by a routing if it has all for it; say whether."""
    for each in incoming:
        if each.shard is shard and each.tables is shard.tables and each.step == shard.step == step:
            shard.go_by(store)
            return True
    return False


def drop_at_once(shard: Shard) -> None:
    for _ in shard.drop_others():
        pass


def owners_of_keys(shards: list[Shard]) -> dict[tuple[str, int], list[int]]:
    """Return the shards that count each key's row or counter as theirs, by table and key."""
    owners: dict[tuple[str, int], list[int]] = {}
    for shard in shards:
        for table in shard.tables:
            for held in (table.export(), table.export_counters()):
                for key in held.keys.tolist():
                    owners.setdefault((table.spec.name, key), []).append(shard.index)
    return owners


def misplaced(shards: list[Shard]) -> list[tuple[str, int]]:
    """Return the keys that not exactly the shard of their bucket counts as its own."""
    routing = shards[0].routing
    return [
        (name, key)
        for (name, key), found in owners_of_keys(shards).items()
        if found != [int(routing.buckets[buckets_of(np.array([key]))[0]])]
    ]
