"""Connections to shards as TCP makes them: ordered each way, until they break and lose what flies.

A client sends what was not answered again on a new connection, as `ps.client.client` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from ps.client.client import Open
from ps.copies import Copies
from ps.messages.exchange import Refusal, Reply, Request
from ps.messages.pull_push import Contribution, Pull
from ps.messages.records import Apply, Record
from ps.shard.lease import CoordinatorLease
from ps.shard.shard import Outgoing, Shard
from simulation.world import AGAIN_SECONDS, World

RECONNECT_SECONDS = 0.02
# Of a shard that does not hear its coordinator, which speaks every tenth of a second.
LEASE_SECONDS = 0.4


class ShardObserver(Protocol):
    """Sees everything that a copy of a shard, by its number, takes and answers."""

    def shard_took(
        self, shard: int, sender: int, message: Request, outgoing: list[Outgoing]
    ) -> None: ...


class CutOffObserver(Protocol):
    """Sees what a shard answers that its coordinator can't reach, and since when."""

    def cut_off_shard_took(
        self, message: Request, outgoing: list[Outgoing], *, heard_before: float
    ) -> None: ...


class _Unobserved:
    def cut_off_shard_took(
        self, message: Request, outgoing: list[Outgoing], *, heard_before: float
    ) -> None:
        pass


@dataclass(slots=True, eq=False)
class Connection:
    """One connection; `up` leads to the shard.

    Args:
        number: the shard's name for it.
        shard: the number of the copy that the client means.
        process: that is at its other end, be it the job's or one that was given up.
        broken: the client has given it up; nothing arrives there any more.
        lost: nothing that is still under way arrives at the shard either.
        gone: the process is dead.
        last_up, last_down: when the latest message of each direction arrives.
    """

    number: int
    shard: int
    process: Shard
    client: "Client"
    broken: bool = False
    lost: bool = False
    gone: bool = False
    last_up: float = 0.0
    last_down: float = 0.0


class Network:
    """Carries requests to the shards and replies back.

    A shard that is cut off is reached by those who are connected with it already, but for the
    coordinator; it lives on beside the process that takes its place.

    Args:
        shards: the processes that are primaries; `standbys`: those that are standbys, by shard.
        new_lease: makes what says whether a shard has heard its coordinator lately.
    """

    def __init__(
        self,
        world: World,
        shards: list[Shard],
        standbys: dict[int, Shard],
        observer: ShardObserver,
        new_lease: Callable[[float], CoordinatorLease] = CoordinatorLease,
    ) -> None:
        self.world = world
        self.shards = shards
        self.standbys = standbys
        self.dead: set[int] = set()  # copies that are dead or cut off, by number
        self.observer = observer
        self.cut_off_observer: CutOffObserver = _Unobserved()
        self._new_lease = new_lease
        self._leases: dict[Shard, CoordinatorLease] = {}
        self._cut_off: dict[Shard, float] = {}  # and since when
        self._connections: dict[int, Connection] = {}
        self._next_number = 0

    def connect(self, client: "Client", shard: int) -> Connection | None:
        """Open a connection to a copy; None where it is dead."""
        process = self.process(shard)
        if shard in self.dead or process is None:
            return None
        connection = Connection(self._next_number, shard, process, client)
        self._next_number += 1
        self._connections[connection.number] = connection
        return connection

    def process(self, number: int) -> Shard | None:
        """Return the process that is a copy now."""
        primaries = len(self.shards)
        return self.shards[number] if number < primaries else self.standbys.get(number - primaries)

    def number_of(self, process: Shard) -> int | None:
        """Return which copy a process is now, if it is one."""
        index = process.index
        if self.shards[index] is process:
            return index
        return index + len(self.shards) if self.standbys.get(index) is process else None

    def send(self, connection: Connection, message: Request) -> None:
        """Send a request; it may break the connection, or arrive once more some time later."""
        world = self.world
        if world.strikes("old_epoch"):
            self._deliver_up(connection, _of_older_epoch(message, connection.process))
        self._deliver_up(connection, message)
        if world.strikes("duplicate"):
            again = connection.last_up + world.random.uniform(0.0, AGAIN_SECONDS)
            world.queue.at(again, lambda: self._arrive(connection, message))
        if world.strikes("cut"):
            world.queue.later(2 * world.delay(), lambda: self.cut(connection))

    def cut(self, connection: Connection) -> None:
        """Break a connection; the shard notices after what still arrives there."""
        if connection.broken:
            return
        connection.broken = True
        connection.lost = self.world.random.random() < 0.5
        noticed = max(connection.last_up, self.world.queue.now) + self.world.delay()
        self.world.queue.at(noticed, lambda: self._forget(connection))
        connection.client.connection_lost(connection)

    def kill_shard(self, shard: int) -> None:
        self.dead.add(shard)
        self.world.story.tell("copy %s dies", shard)
        for connection in [c for c in self._connections.values() if c.shard == shard]:
            connection.gone = True
            self.cut(connection)

    def cut_off_shard(self, shard: int, coordinator: "Client") -> None:
        """Nobody new reaches a shard, nor does its coordinator; workers go on with it."""
        self.dead.add(shard)
        process = self.process(shard)
        assert process is not None, "there is such a copy"
        self._cut_off[process] = self.world.queue.now
        self.world.story.tell("copy %s is cut off", shard)
        for connection in [c for c in self._connections.values() if c.shard == shard]:
            if connection.client is coordinator:
                connection.gone = True
                self.cut(connection)

    def revive(self, shard: int) -> None:
        """Another process is there instead of a dead shard."""
        self.dead.discard(shard)

    def beat(self, recovery_epoch: int) -> None:
        """The coordinator says nothing in particular to every shard that it reaches."""
        copies = dict(enumerate(self.shards))
        copies |= {len(self.shards) + index: shard for index, shard in self.standbys.items()}
        for number, shard in copies.items():
            if number not in self.dead and shard.recovery_epoch == recovery_epoch:
                self._lease_of(shard).heard(recovery_epoch, self.world.queue.now)

    def _lease_of(self, shard: Shard) -> CoordinatorLease:
        return self._leases.setdefault(shard, self._new_lease(LEASE_SECONDS))

    def _deliver_up(self, connection: Connection, message: Request) -> None:
        connection.last_up = max(connection.last_up, self.world.queue.now + self.world.delay())
        self.world.queue.at(connection.last_up, lambda: self._arrive(connection, message))

    def _arrive(self, connection: Connection, message: Request) -> None:
        known = connection.number in self._connections
        if connection.lost or connection.gone or not known:
            return
        shard, number = connection.process, connection.number
        unheard = self._unheard(shard, message)
        outgoing = shard.handle(message, number) if unheard is None else [Outgoing(number, unheard)]
        if shard in self._cut_off:
            self.cut_off_observer.cut_off_shard_took(
                message, outgoing, heard_before=self._cut_off[shard]
            )
        copy = self.number_of(shard)
        if unheard is None and copy is not None:
            self.observer.shard_took(copy, number, message, outgoing)
        for out in outgoing:
            assert isinstance(out.to, int)
            self._answer(self._connections.get(out.to), out.reply)
        self.take_ready(shard)

    def _unheard(self, shard: Shard, message: Request) -> Refusal | None:
        """Refuse a worker's message where the coordinator is silent, as `DataPlane` does."""
        now, epoch, lease = self.world.queue.now, message.recovery_epoch, self._lease_of(shard)
        if epoch != shard.recovery_epoch:
            return None
        if not isinstance(message, Pull | Contribution):
            lease.heard(epoch, now)
        elif lease.silence(epoch, now) is not None:
            return Refusal(message.request_id, "unheard", f"shard {shard.index} hears nobody")
        return None

    def take_ready(self, shard: Shard) -> None:
        """Let a shard handle again what need not wait any more."""
        for sender, pull in shard.take_ready():
            assert isinstance(sender, int)
            self._hand_back(sender, pull)

    def _hand_back(self, sender: int, pull: Pull) -> None:
        """Let a pull that had to wait be answered some time later: others may come in between."""
        connection = self._connections.get(sender)
        if connection is not None:
            self.world.queue.later(self.world.delay(), lambda: self._arrive(connection, pull))

    def _answer(self, connection: Connection | None, reply: Reply) -> None:
        if connection is None:
            return
        connection.last_down = max(connection.last_down, self.world.queue.now + self.world.delay())
        client = connection.client
        self.world.queue.at(connection.last_down, lambda: client.arrived(connection, reply))

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection.number, None)
        connection.process.disconnect(connection.number)


class Client:
    """Requests to all copies of the shards, gathered until each has answered.

    Args:
        network: carries them.
        copies: that there are in the client's recovery epoch.
        answered: called with a request that every shard has answered.
        run: called with what has to happen in the client's process, which may be frozen or dead.
        done: whether a request is answered; all of its shards have to be.
    """

    def __init__(
        self,
        network: Network,
        copies: Copies,
        *,
        answered: Callable[[Open], None],
        run: Callable[[Callable[[], None]], None],
        done: Callable[[Open], bool] = lambda request: request.done,
    ) -> None:
        self._network = network
        self.copies = copies
        self._answered = answered
        self._run = run
        self._done = done
        self._open: dict[int, Open] = {}
        self._next_request = 0
        self._closed = False
        self._connections: dict[int, Connection | None] = {}
        for number in copies.numbers:
            self._connections[number] = network.connect(self, number)
            if self._connections[number] is None:
                self._later(partial(self._reconnect, number))

    def new_id(self) -> int:
        self._next_request += 1
        return self._next_request

    def start(self, messages: dict[int, Request], *, survives: Callable[[], bool]) -> Open | None:
        """Send one message to each shard; None where the client dies before one of them."""
        request_id = next(iter(messages.values())).request_id
        request = Open(request_id, messages, set(messages))
        return self._send(request, messages, survives)

    def start_again(self, request: Open, *, survives: Callable[[], bool]) -> None:
        """Send an answered request again to the shards that refused it."""
        again = {shard: request.messages[shard] for shard in request.refusals}
        request.waiting = set(again)
        for shard in again:
            del request.replies[shard]
        self._send(request, again, survives)

    def _send(
        self, request: Open, messages: dict[int, Request], survives: Callable[[], bool]
    ) -> Open | None:
        self._open[request.request_id] = request
        for shard, message in messages.items():
            if not survives():
                return None
            connection = self._connections[shard]
            if connection is not None:
                self._network.send(connection, message)
        return request if survives() else None

    def begin_anew(self) -> None:
        """Stop waiting for anything, and turn to the shards that the job has now."""
        self._open.clear()
        for shard, connection in self._connections.items():
            if connection is not None and connection.process is not self._network.process(shard):
                connection.broken = connection.lost = True
                self._connections[shard] = self._network.connect(self, shard)

    def close(self) -> None:
        """Break all connections for good."""
        self._closed = True
        for connection in self._connections.values():
            if connection is not None:
                self._network.cut(connection)

    def connection_lost(self, connection: Connection) -> None:
        """Connect again after a while."""
        if self._closed:
            return
        self._connections[connection.shard] = None
        self._later(lambda: self._reconnect(connection.shard))

    def _later(self, action: Callable[[], None]) -> None:
        world = self._network.world
        seconds = RECONNECT_SECONDS * world.random.random()
        world.queue.later(seconds, lambda: self._run(action))

    def _reconnect(self, shard: int) -> None:
        if self._closed:
            return
        connection = self._network.connect(self, shard)
        if connection is None:
            self._network.world.queue.later(1.0, lambda: self._reconnect(shard))
            return
        self._connections[shard] = connection
        for request in self._open.values():
            if shard in request.waiting:
                self._network.send(connection, request.messages[shard])

    def arrived(self, connection: Connection, reply: Reply) -> None:
        """A reply has come to the client's machine."""
        self._run(lambda: self._receive(connection, reply))

    def _receive(self, connection: Connection, reply: Reply) -> None:
        request = self._open.get(reply.request_id)
        shard = connection.shard
        if connection.broken or request is None or shard not in request.waiting:
            return
        request.replies[shard] = reply
        request.waiting.discard(shard)
        if self._done(request):
            del self._open[request.request_id]
            self._answered(request)


def _of_older_epoch(message: Request, shard: Shard) -> Request:
    """Return what somebody who missed the last recovery could send just before a message."""
    epoch = message.recovery_epoch - 1
    if isinstance(message, Contribution):
        wrong = np.float32(2) * message.gradients + np.float32(1)
        return replace(message, recovery_epoch=epoch, gradients=wrong, request_id=0)
    if isinstance(message, Apply):
        last = message.records[0]
        record = Record(
            step=shard.step, recovery_epoch=epoch, mode_epoch=0, entries=(), divisor=0,
            scalars=last.scalars,
        )  # fmt: skip
        return Apply(0, epoch, (record,))
    return replace(message, recovery_epoch=epoch, request_id=0)
