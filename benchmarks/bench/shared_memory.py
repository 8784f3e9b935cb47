"""Frames whose arrays lie in shared memory; their headers go over a Unix socket.

The socket is the doorbell, and its end the news that the peer has died. The memory has no name: its
descriptor crosses the socket once, and it is gone with the processes. One message each way is
under way at a time, so each direction has room for one.
"""

import fcntl
import mmap
import os
import socket
from dataclasses import fields
from typing import cast

import numpy as np
import numpy.typing as npt

from bench.exchanges import AnyMessage, blank
from ps.messages.exchange import Message
from ps.messages.wire import Header, WireError, array_names, decode_body, encode
from ps.net.sockets import receive_header

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create_region(direction_bytes: int) -> int:
    """Return the descriptor of new memory with room for frames of so many bytes each way.

    Its size is sealed: a peer that made it smaller would kill whoever reads it.
    """
    page = mmap.PAGESIZE
    descriptor = os.memfd_create("bench-transport", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 2 * (-(-max(1, direction_bytes) // page) * page))
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


class SharedMemoryChannel:
    """One end of a connection with shared memory.

    Args:
        sock: a connected Unix socket without a timeout.
        descriptor: of the memory; the caller may close it afterwards.
        first: whether this end writes to the first half; the other end has the other.
        in_place: whether messages made by `blank` lie where they are sent from.

    Raises:
        WireError: the peer could still change the size of the memory.
    """

    def __init__(
        self, sock: socket.socket, descriptor: int, *, first: bool, in_place: bool
    ) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise WireError("shared memory whose size is not sealed")
        self.sock = sock
        self._in_place = in_place
        memory = np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size), np.uint8)
        halves = np.split(memory, 2)
        self._outgoing, self._incoming = halves if first else halves[::-1]

    def blank(self, message: AnyMessage) -> AnyMessage:
        """Return a message of the same sizes to be filled; in place: where it is sent from."""
        if not self._in_place:
            return blank(message)
        arrays = array_names(type(message))
        lengths = tuple(getattr(message, name).size for name in arrays)
        names = [field.name for field in fields(message) if field.name not in arrays]
        scalars = {name: getattr(message, name) for name in names}
        header = Header(type(message), scalars, lengths, 0, False)
        return cast(AnyMessage, decode_body(header, self._room(header.arrays_bytes)))

    def send(self, message: Message) -> None:
        """Copy the arrays that do not lie in their place yet, and send the header."""
        header, *parts = encode(message)
        room = self._room(sum(len(part) for part in parts))
        for part in parts:
            source, target = np.frombuffer(part, np.uint8), room[: len(part)]
            if source.ctypes.data != target.ctypes.data:
                target[:] = source
            room = room[len(part) :]
        self.sock.sendall(header)

    def receive(self) -> Message:
        """Wait for a message; its arrays are overwritten by the next one."""
        header, _ = receive_header(self.sock)
        size = header.body_bytes
        if size > self._incoming.size:
            raise WireError(f"a body of {size} bytes, room is for {self._incoming.size}")
        return decode_body(header, self._incoming[:size])

    def _room(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if nbytes > self._outgoing.size:
            raise ValueError(f"a body of {nbytes} bytes, room is for {self._outgoing.size}")
        return self._outgoing[:nbytes]
