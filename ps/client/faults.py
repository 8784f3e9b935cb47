"""Faults of connections on purpose: messages that come late, come twice, or are lost.

A faulty connection goes through a relay in the client's process: the client holds one end of a
socket pair, and two threads pass on whole frames, one in each direction. So the client and the
shard meet what they would meet on a bad network, and a message that is held back holds up nothing
but what follows it on its connection. Streams don't lose single messages: a dropped one takes its
connection with it.
"""

import contextlib
import math
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ps.client.client import Connect
from ps.messages.wire import PREFIX, decode_prefix
from ps.net.sockets import receive_exactly, receive_into, tune


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFault:
    """Something that befalls messages, requests and replies alike.

    Args:
        kind: `delay` holds a message back; `drop` cuts the connection before the message, in the
            midst of it or after it; `duplicate` sends it twice.
        probability: that it befalls a message.
        seconds: of a delay.
        from_seconds, to_seconds: since `ConnectionFaults.started`, in which it happens.
    """

    kind: Literal["delay", "drop", "duplicate"]
    probability: float
    seconds: float = 0.0
    from_seconds: float = 0.0
    to_seconds: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFaults:
    """All faults of a client's connections.

    Args:
        faults: each drawn by itself for each message.
        seed: of the draws.
        started: when the processes were set up, as `time.time()`.
    """

    faults: tuple[ConnectionFault, ...] = ()
    seed: int = 0
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one message.

    Args:
        delay: seconds for which it is held back.
        copies: how often it is sent, where its connection is not cut.
        cut_after: the part of it, from 0 to 1, after which the connection is cut; None: it is not.
    """

    delay: float = 0.0
    copies: int = 1
    cut_after: float | None = None


class Fates:
    """The fates of the messages of one direction of one connection, in their order.

    Args:
        plan: of the client.
        stream: non-negative numbers that tell these messages from all others of the job.
    """

    def __init__(self, plan: ConnectionFaults, stream: Sequence[int]) -> None:
        self._plan = plan
        self._random = np.random.default_rng([plan.seed, *stream])

    def next(self, now: float) -> Fate:
        """Draw the fate of the next message; as many draws whatever `now` (`time.time()`) is."""
        chances = self._random.random(len(self._plan.faults))
        cut_after = int(self._random.integers(3)) / 2
        seconds = now - self._plan.started
        struck = [
            fault
            for fault, chance in zip(self._plan.faults, chances, strict=True)
            if chance < fault.probability and fault.from_seconds <= seconds < fault.to_seconds
        ]
        kinds = [fault.kind for fault in struck]
        return Fate(
            delay=sum(fault.seconds for fault in struck if fault.kind == "delay"),
            copies=1 + kinds.count("duplicate"),
            cut_after=cut_after if "drop" in kinds else None,
        )


def with_faults(connect: Connect, plan: ConnectionFaults, *, process: Sequence[int]) -> Connect:
    """Return a way to connect whose connections have faults; `connect` itself if there are none.

    Args:
        connect: opens an authenticated connection to a shard.
        plan: the faults.
        process: numbers that tell this client from all others of the job. The draws depend on
            them, the shard, how many connections to it were made before, and the direction.
    """
    if not plan.faults:
        return connect
    made: Counter[int] = Counter()

    def connect_to_relay(shard: int) -> socket.socket:
        server = connect(shard)
        stream = [*process, shard, made[shard]]
        made[shard] += 1
        return _relayed(server, Fates(plan, [*stream, 0]), Fates(plan, [*stream, 1]))

    return connect_to_relay


def _relayed(server: socket.socket, requests: Fates, replies: Fates) -> socket.socket:
    """Start a relay to a connected socket, which it closes in the end; return the client's end."""
    ours, client = socket.socketpair()
    tune(ours)
    tune(client)
    relay = _Relay(client=ours, server=server)
    threading.Thread(target=relay.run, args=(requests, replies), daemon=True).start()
    return client


class _Relay:
    """Passes frames on between two sockets until either side ends or a fault cuts them."""

    def __init__(self, *, client: socket.socket, server: socket.socket) -> None:
        self._client = client
        self._server = server

    def run(self, requests: Fates, replies: Fates) -> None:
        back = threading.Thread(
            target=self._pass_on, args=(self._server, self._client, replies), daemon=True
        )
        back.start()
        self._pass_on(self._client, self._server, requests)
        back.join()
        self._client.close()
        self._server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, fates: Fates) -> None:
        try:
            while True:
                frame = _receive_frame(source)
                fate = fates.next(time.time())
                if fate.delay > 0:
                    _wait(source, fate.delay)
                if fate.cut_after is not None:
                    target.sendall(memoryview(frame)[: int(fate.cut_after * len(frame))])
                    return
                for _ in range(fate.copies):
                    target.sendall(frame)
        except OSError:
            pass  # one side is gone, and the other is told so below
        finally:
            for sock in (source, target):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def _receive_frame(sock: socket.socket) -> bytearray:
    poll = select.poll()  # between frames any time may pass
    poll.register(sock, select.POLLIN)
    poll.poll()
    prefix = receive_exactly(sock, PREFIX.size)
    frame = bytearray(PREFIX.size + sum(decode_prefix(prefix)))
    frame[: PREFIX.size] = prefix
    receive_into(sock, memoryview(frame)[PREFIX.size :])
    return frame


def _wait(sock: socket.socket, seconds: float) -> None:
    """Wait so long, or until the socket's peer is gone."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    poll.poll(seconds * 1000)
