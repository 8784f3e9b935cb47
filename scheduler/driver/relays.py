"""The relays of a job: processes between its workers and the coordinator. None is ever needed."""

import contextlib
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from ps.net.sockets import Address
from scheduler.driver.placement import Placement
from scheduler.job.config import ClusterConfig
from worker.relay.actor import RelayActor

# For all relays together, where an epoch begins: they are up by then, as a rule.
BEGIN_SECONDS = 10.0
CLOSE_SECONDS = 2.0


class Relays:
    """Starts relays, and has those that live pass reports on to the coordinator of an epoch.

    One that has died, or says nothing, is left out, and another one comes in its place with the
    next epoch: its workers go to another relay meanwhile, or to the coordinator.

    Args:
        own_cluster: whether all processes are on this machine.
        note: tells a person something.
    """

    def __init__(
        self,
        placement: Placement,
        cluster: ClusterConfig,
        *,
        secret: bytes,
        own_cluster: bool,
        note: Callable[[str], None],
    ) -> None:
        self._placement = placement
        self._secret = secret
        self._own_cluster = own_cluster
        self._note = note
        self._handles = {number: self._new(number) for number in range(cluster.num_relays)}

    def begin(self, coordinator: Address) -> tuple[Address, ...]:
        """Return where workers find those that pass reports on to a coordinator from now on."""
        calls = {
            number: handle.begin.remote(number, coordinator, self._secret, not self._own_cluster)
            for number, handle in self._handles.items()
        }
        if calls:
            ray.wait(list(calls.values()), num_returns=len(calls), timeout=BEGIN_SECONDS)
        addresses = []
        for number, call in calls.items():
            try:
                addresses.append(ray.get(call, timeout=0))
            except RayError as error:
                self._note(f"relay {number} is left out: {type(error).__name__}")
                ray.kill(self._handles[number])
                self._handles[number] = self._new(number)
        return tuple(addresses)

    def release(self) -> None:
        """End them; who is still there removes its socket's folder first."""
        closed = [handle.close.remote() for handle in self._handles.values()]
        if closed:
            ray.wait(closed, num_returns=len(closed), timeout=CLOSE_SECONDS)
        for handle in self._handles.values():
            with contextlib.suppress(RayError):
                ray.kill(handle)
        self._handles.clear()

    def _new(self, number: int) -> Any:
        options: Any = self._placement.options("relay", number)
        actor: Any = RelayActor
        return actor.options(**options).remote()
