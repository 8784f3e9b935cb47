"""Simulated relays between workers and the coordinator, around the real `Gathering`.

A relay dies and another one takes its place, with nothing of it. What it passes on, and the answer,
can be late, be lost, or arrive once more later on, when other bundles have long been answered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulation.world import AGAIN_SECONDS, Action, World
from worker.protocol import Grant, Report
from worker.relay.gathering import Gathering

# After so long without an answer its connection to the coordinator is taken for broken.
BROKEN_SECONDS = 0.3

Answered = Callable[[Grant], None]


@dataclass(eq=False)
class _Relay:
    """One relay: `life` counts those that had its place, `under_way` is its bundle's number."""

    gathering: Gathering
    life: int = 0
    under_way: int | None = None


class SimulatedRelays:
    """The relays of a job.

    Args:
        count: how many there are.
        gathering: what each of them is.
        tell: takes reports to the coordinator; returns its answers, None: it is down.
    """

    def __init__(
        self,
        world: World,
        count: int,
        *,
        gathering: type[Gathering],
        tell: Callable[[Sequence[Report]], list[Grant] | None],
    ) -> None:
        self._world = world
        self._new = gathering
        self._tell = tell
        self._relays = [_Relay(gathering()) for _ in range(count)]
        self._peers: dict[int, Answered] = {}
        self._connections = self._bundles = 0

    def takes(self, report: Report, answered: Answered) -> bool:
        """Let a relay carry a report, or none of them: then it goes straight to the coordinator."""
        number = self._world.random.randrange(len(self._relays) + 1) if self._relays else 0
        if number == len(self._relays):
            return False
        relay = self._relays[number]
        self._connections += 1
        peer, life = self._connections, relay.life

        def arrive() -> None:
            if relay.life == life:
                self._peers[peer] = answered
                relay.gathering.reported(peer, report, 100, self._world.queue.now)
                self._pass_on_when_due(relay)

        if not self._world.strikes("lose"):
            self._world.queue.later(self._world.delay(), arrive)
        return True

    def _pass_on_when_due(self, relay: _Relay) -> None:
        due, life = relay.gathering.due_in(self._world.queue.now), relay.life
        if due is not None:
            self._world.queue.later(due, lambda: self._pass_on(relay, life))

    def _pass_on(self, relay: _Relay, life: int) -> None:
        due = relay.gathering.due_in(self._world.queue.now)
        if relay.life != life or due is None:
            return
        if due > 1e-9:
            self._pass_on_when_due(relay)
            return
        reports = relay.gathering.take()
        self._bundles += 1
        bundle = relay.under_way = self._bundles
        self._world.story.tell("a relay passes on %s", reports)
        self._carry(lambda: self._delivered(relay, bundle, reports))
        if self._world.strikes("relay"):
            self._dies(relay)
        self._world.queue.later(BROKEN_SECONDS, lambda: self._broken(relay, bundle))

    def _delivered(self, relay: _Relay, bundle: int, reports: Sequence[Report]) -> None:
        """Whether the relay lives on or not."""
        grants = self._tell(reports)
        if grants is not None:
            self._carry(lambda: self._answered(relay, bundle, grants))

    def _answered(self, relay: _Relay, bundle: int, grants: list[Grant]) -> None:
        if relay.under_way != bundle:
            return  # on a connection that it has given up
        relay.under_way = None
        for peer, grant in relay.gathering.answered(grants):
            self._peers.pop(peer)(grant)
        self._pass_on_when_due(relay)

    def _broken(self, relay: _Relay, bundle: int) -> None:
        if relay.under_way == bundle:
            relay.under_way = None
            for peer in relay.gathering.cut_off():
                del self._peers[peer]

    def _dies(self, relay: _Relay) -> None:
        self._world.story.tell("a relay dies")
        relay.life += 1
        relay.gathering, relay.under_way = self._new(), None

    def _carry(self, arrive: Action) -> None:
        world = self._world
        if not world.strikes("lose"):
            world.queue.later(world.delay(), arrive)
        if world.strikes("duplicate"):
            world.queue.later(world.random.uniform(0.0, 4 * AGAIN_SECONDS), arrive)
