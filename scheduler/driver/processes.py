"""The processes of a job, and what is known of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from ps.net.sockets import Address
from scheduler.driver.placement import Placement
from scheduler.driver.relays import Relays
from scheduler.errors import TrainingError

CLOSE_SECONDS = 2.0

Who = tuple[str, int]
"""A process that keeps state of the job: its role and its number, the coordinator's being 0, that
of a standby, or of one that is being made (`copy`), its server's."""

COORDINATOR: Who = ("coordinator", 0)


class ProcessLostError(TrainingError):
    """Servers, or the coordinator, are gone or do not answer: the job has to go back.

    Args:
        lost: what has befallen each.
    """

    def __init__(self, lost: Mapping[Who, str]) -> None:
        super().__init__("; ".join(lost[who] for who in sorted(lost)))
        self.lost = dict(lost)


@dataclass(slots=True)
class ServerProcess:
    """The actor of a server, or of a standby of one.

    Args:
        bundle: of the placement that it is in.
        begun: the call in which it makes its tables, answered once it is up.
        watch: the call that ends with its failure or death; None until it is up.
        facts: where it runs, and its fingerprint; known once it is up.
        address: where it listens; known once it is up.
        incarnation: how many processes with its number there were before.
        is_near: of one that is to be a standby, whether it lacks little of what its server has.
    """

    handle: Any
    begun: Any
    incarnation: int = 0
    bundle: int = 0
    watch: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    address: Address | None = None
    is_near: bool = False


@dataclass(slots=True)
class CoordinatorProcess:
    """The coordinator's actor; see `ServerProcess`.

    Args:
        name: by which tools find it.
        begun: the call that is answered once it is up.
        address: where it listens; known once it has begun.
    """

    handle: Any
    name: str
    begun: Any = None
    incarnation: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    address: Address | None = None


@dataclass(slots=True)
class WorkerProcess:
    """One worker's actor.

    Args:
        created: when it was asked for, as `time.monotonic()`.
        described: the call that is answered once its process is up.
        run: the call in which it works; None until it is up.
        pid, node, fingerprint: known once it is up; of the fingerprint its digest.
    """

    index: int
    incarnation: int
    handle: Any
    created: float
    described: Any
    run: Any = None
    pid: int | None = None
    node: str = ""
    fingerprint: str = ""

    @property
    def awaited(self) -> Any:
        """The call whose end is the next thing that happens to it."""
        return self.described if self.run is None else self.run


@dataclass(slots=True)
class Processes:
    """The processes of a job as they are now: lost ones are replaced in place.

    Args:
        standbys: servers that hold what another one does, and take its place where it is lost; by
            the number of that one.
        copies: those that are to be standbys and lack something yet.
        coming: that are to take the place of others, and have no state yet.
        leaving: servers that the job has no more, and that were told to close.
        relays: between workers and the coordinator; `relay_addresses`: of those of this epoch.
    """

    placement: Placement
    servers: list[ServerProcess]
    coordinator: CoordinatorProcess
    standbys: dict[int, ServerProcess] = field(default_factory=dict)
    copies: dict[int, ServerProcess] = field(default_factory=dict)
    workers: dict[int, WorkerProcess] = field(default_factory=dict)
    coming: dict[Who, ServerProcess | CoordinatorProcess] = field(default_factory=dict)
    leaving: list[ServerProcess] = field(default_factory=list)
    relays: Relays | None = None
    relay_addresses: tuple[Address, ...] = ()

    @property
    def watches(self) -> list[Any]:
        """The calls that end with a server or a standby."""
        held = self.holding.values()
        return [server.watch for server in held if server.watch is not None]

    @property
    def holding(self) -> dict[Who, ServerProcess]:
        """The processes that hold the model: servers and standbys."""
        servers: dict[Who, ServerProcess] = {
            ("server", index): server for index, server in enumerate(self.servers)
        }
        standbys = sorted(self.standbys.items())
        return servers | {("standby", index): server for index, server in standbys}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the servers listen, in their order."""
        found = tuple(server.address for server in self.servers if server.address is not None)
        assert len(found) == len(self.servers), "all of them are up"
        return found

    @property
    def standby_addresses(self) -> dict[int, Address]:
        """Where the standbys listen, by their server's number."""
        return {i: s.address for i, s in sorted(self.standbys.items()) if s.address is not None}

    def process(self, who: Who) -> ServerProcess:
        """Return a server, a standby or what is to be one."""
        role, index = who
        if role == "server":
            if index >= len(self.servers):  # one that is to join them
                coming = self.coming[who]
                assert isinstance(coming, ServerProcess), "only servers are counted so"
                return coming
            return self.servers[index]
        return (self.standbys if role == "standby" else self.copies)[index]

    def who_is(self, number: int) -> Who:
        """Return who has a number among the copies of the shards, see `ps.copies`."""
        servers = len(self.servers)
        return ("server", number) if number < servers else ("standby", number - servers)

    def of_copies(self, call: Callable[[Any], Any]) -> dict[Who, Any]:
        """Call every server and every standby, see `of_servers`."""
        return {who: call(server.handle) for who, server in self.holding.items()}

    def of_servers(self, call: Callable[[Any], Any]) -> dict[Who, Any]:
        """Call every server, see `answers.answers_of`.

        Args:
            call: is given a server's handle, and returns what the call is known by.
        """
        return {("server", i): call(server.handle) for i, server in enumerate(self.servers)}

    def of(self, who: Who) -> ServerProcess | CoordinatorProcess:
        """Return any process that keeps state of the job."""
        return self.coordinator if who == COORDINATOR else self.process(who)

    def describe(self, who: Who) -> str:
        """Return how a person is told of a process."""
        name = "the coordinator"
        if who != COORDINATOR:
            server = f"server {who[1]}"
            name = server if who[0] == "server" else f"the standby of {server}"
        pid = self.of(who).facts.get("pid")
        return name if pid is None else f"{name} (pid {pid})"

    def release(self) -> None:
        """End every actor; on a shared cluster they would live as long as the driver."""
        if self.relays is not None:
            self.relays.release()
        servers = [*self.servers, *self.standbys.values(), *self.copies.values()]
        handles = [*(server.handle for server in servers), self.coordinator.handle]
        # Who is still there removes its socket's folder first.
        closed = [handle.close.remote() for handle in handles]
        ray.wait(closed, timeout=CLOSE_SECONDS, num_returns=len(closed))
        handles += [worker.handle for worker in self.workers.values()]
        handles += [process.handle for process in (*self.coming.values(), *self.leaving)]
        for handle in handles:
            ray.kill(handle)
        self.placement.release()
