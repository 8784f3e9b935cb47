"""How batches get to a device and back, beside what is computed there.

    host, pinned --(a stream)--> inputs, on the device --(a stream)--> results, on the device
                 --(a stream)--> returned, on the host, pinned

Each of a batch's three stretches waits for the one before by an event, on the device. The host
waits once, for what has returned. On the CPU a batch's inputs are where they were written, its
results where they were computed, and nothing is copied, pinned or waited for.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from worker.models.protocol import FloatArray


class Room:
    """The buffers of one batch, used again by later ones; they grow to the largest.

    Attributes:
        inputs: float32[any], on the device.
        results: float32[any], on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pins = device.type == "cuda"
        self._host = torch.empty(0)
        self._returned = torch.empty(0)
        self.inputs = torch.empty(0, device=device)
        self.results = torch.empty(0, device=device)
        self.sent: Any = torch.cuda.Event() if self._pins else None
        self.computed: Any = torch.cuda.Event() if self._pins else None
        # Who waits for it gives its core away.
        self.returned: Any = torch.cuda.Event(blocking=True) if self._pins else None

    def host(self, size: int) -> torch.Tensor:
        """Return float32[size] on the host, to be written, which `Staging.send` sends."""
        if self._host.numel() < size:
            self._host = torch.empty(size, pin_memory=self._pins)
        return self._host[:size]

    def send(self, size: int) -> None:
        """Bring what `host` gave to `inputs`, on the current stream."""
        if not self._pins:
            self.inputs = self._host
            return
        if self.inputs.numel() < size:
            self.inputs = torch.empty(size, device=self._device)
        self.inputs[:size].copy_(self._host[:size], non_blocking=True)

    def for_results(self, size: int) -> torch.Tensor:
        """Return float32[size] on the device, to be written; made on the current stream."""
        if self.results.numel() < size:
            self.results = torch.empty(size, device=self._device)
        return self.results[:size]

    def bring_back(self, size: int) -> None:
        """Bring results to the host, on the current stream."""
        if not self._pins:
            self._returned = self.results
            return
        if self._returned.numel() < size:
            self._returned = torch.empty(size, pin_memory=True)
        self._returned[:size].copy_(self.results[:size], non_blocking=True)

    def on_host(self, size: int) -> FloatArray:
        """Return float32[size], the results, which were waited for."""
        values: FloatArray = self._returned[:size].numpy()
        return values


class Staging:
    """Sends batches to a device, and brings back what is computed of them.

    A batch has a room from `take` to `give`; in between come `Room.host`, `send`, `computing`,
    `bring_back` and `wait`. Rooms are given back only after `wait`: then nothing on the device
    reads or writes their buffers any more, and they may be written, or be made anew.

    Args:
        device: where batches are computed.
        overlapped: whether copies have streams of their own; else they are in line with what is
            computed. For measuring.
    """

    def __init__(self, device: torch.device, *, overlapped: bool = True) -> None:
        self._device = device
        self._free: list[Room] = []
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self._sending = torch.cuda.Stream(device) if overlapped else self.stream
            self._returning = torch.cuda.Stream(device) if overlapped else self.stream

    def take(self) -> Room:
        """Return a room that no batch has."""
        return self._free.pop() if self._free else Room(self._device)

    def give(self, room: Room) -> None:
        """Take back a room whose results were waited for and read."""
        self._free.append(room)

    def send(self, room: Room, size: int) -> None:
        """Send what was written to the host's buffer; what is computed next waits for it."""
        if self.stream is None:
            room.send(size)
            return
        with torch.cuda.stream(self._sending):
            room.send(size)
            room.sent.record()
        self.stream.wait_event(room.sent)

    def computing(self) -> AbstractContextManager[Any]:
        """Have what is computed within a block be in line with what was computed before."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def bring_back(self, room: Room, size: int) -> None:
        """Bring results back once they are computed; waits for nothing."""
        if self.stream is None:
            room.bring_back(size)
            return
        room.computed.record(self.stream)
        self._returning.wait_event(room.computed)
        with torch.cuda.stream(self._returning):
            room.bring_back(size)
            room.returned.record()

    def has_returned(self, room: Room) -> bool:
        """Whether `wait` would return at once."""
        return self.stream is None or bool(room.returned.query())

    def wait(self, room: Room) -> None:
        """Wait until the results are on the host; other threads may run meanwhile."""
        if self.stream is not None:
            room.returned.synchronize()

    def let_go(self, room: Room) -> None:
        """Take back the room of a batch that failed, once nothing on the device uses it."""
        if self.stream is not None:
            torch.cuda.synchronize(self._device)
        self.give(room)
