"""A relay with its sockets: everything that process does, but for being a Ray actor."""

import logging
import socket
import time
from collections.abc import Callable

from ps.messages.wire import WireError
from worker.control_bundles import MAX_BUNDLE_BYTES, pack_reports, unpack_grants
from worker.control_loop import ControlLoop, Frame
from worker.control_wire import MAGIC, MANY_MAGIC, MAX_BYTES, frame_of, framed, report_in
from worker.relay.gathering import Gathering

logger = logging.getLogger(__name__)


class RelayServer:
    """Lets workers in as the coordinator does, and passes on what they report.

    Where the coordinator is out of reach it drops those who wait: they go elsewhere.

    Args:
        number: of the relay.
        connect: opens an authenticated connection to the coordinator.
        secret: what a worker must prove to know.
        gathering: of the reports.
    """

    def __init__(
        self,
        number: int,
        connect: Callable[[], socket.socket],
        *,
        secret: bytes,
        gathering: Gathering | None = None,
    ) -> None:
        self._name = f"relay {number}"
        self._connect = connect
        self._gathering = gathering or Gathering()
        self._coordinator: int | None = None  # the number of the connection to it
        self.failure: Exception | None = None
        self._loop = ControlLoop(
            self._name,
            secret=secret,
            limits={MAGIC: MAX_BYTES, MANY_MAGIC: MAX_BUNDLE_BYTES},
            received=self._received,
            on_error=self._failed,
            pause=lambda: self._gathering.due_in(time.monotonic()),
            gone=self._gone,
        )
        self.listener = self._loop.listener

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self._loop.close()

    def _failed(self, error: Exception) -> None:
        """Its workers are dropped, and go elsewhere."""
        logger.error("%s has failed", self._name, exc_info=error)
        self.failure = error

    def _received(self, frames: list[Frame]) -> None:
        now = time.monotonic()
        for number, magic, body in frames:
            try:
                if number == self._coordinator:
                    self._answer(body)
                elif magic == MAGIC:
                    self._gathering.reported(number, report_in(body), len(body), now)
                else:
                    raise WireError("a relay passes on the reports of workers, not of relays")
            except (WireError, ValueError) as error:
                logger.warning("%s drops a connection: %s", self._name, error)
                self._loop.drop(number)
                self._gone(number)
        if self._gathering.due_in(now) == 0.0:
            self._pass_on()

    def _answer(self, body: bytes) -> None:
        for peer, grant in self._gathering.answered(unpack_grants(body)):
            self._loop.send(peer, frame_of(grant))

    def _pass_on(self) -> None:
        try:
            if self._coordinator is None:
                self._coordinator = self._loop.add(self._connect())
        except OSError as error:
            logger.warning("%s can't reach the coordinator: %s", self._name, error)
            self._cut_off()
            return
        bundle = pack_reports(self._gathering.take())
        self._loop.send(self._coordinator, framed(MANY_MAGIC, bundle))

    def _gone(self, number: int) -> None:
        if number != self._coordinator:
            self._gathering.gone(number)
            return
        self._coordinator = None
        self._cut_off()

    def _cut_off(self) -> None:
        for peer in self._gathering.cut_off():
            self._loop.drop(peer)
