"""Who waits for whom on a device, with streams and events that only take notes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from worker.models.torch import staging  # noqa: E402


class Notes(list[str]):
    """In place of `torch.cuda`, with memory of the CPU: what is done on which stream, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.current = "host"
        self.streams, self.pinned = 0, 0

    def Stream(self, device: Any) -> Any:
        self.streams += 1
        name = f"stream {self.streams}"
        return SimpleNamespace(
            name=name, wait_event=lambda event: self.append(f"{name} waits for {event.name}")
        )

    def Event(self, *, blocking: bool = False) -> Any:
        event = SimpleNamespace(name="an event", done=False)

        def record(stream: Any = None) -> None:
            where = self.current if stream is None else stream.name
            event.name = f"event on {where}"
            self.append(f"{event.name} recorded")

        def synchronize() -> None:
            event.done = True
            self.append(f"host waits for {event.name}")

        event.record, event.synchronize, event.query = record, synchronize, lambda: event.done
        return event

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def synchronize(self, device: Any) -> None:
        self.append("host waits for all")

    def empty(self, size: int, *, device: Any = None, pin_memory: bool = False) -> Any:
        self.pinned += pin_memory
        where = "pinned" if pin_memory else "host" if device is None else f"device, {self.current}"
        if size:
            self.append(f"{size} values of {where}")
        return torch.empty(size)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr(staging, "torch", SimpleNamespace(cuda=notes, empty=notes.empty))
    return notes


def send(way: staging.Staging, room: staging.Room, values: np.ndarray) -> None:
    """Send values, and have the device double them."""
    room.host(values.size).numpy()[:] = values
    way.send(room, values.size)
    with way.computing():
        room.for_results(values.size).copy_(2 * room.inputs[: values.size])
        way.bring_back(room, values.size)


def test_each_stretch_waits_for_the_one_before_and_the_host_for_the_last(notes: Notes) -> None:
    way = staging.Staging(torch.device("cuda:0"))
    room = way.take()

    send(way, room, np.arange(3, dtype=np.float32))
    assert not way.has_returned(room)
    way.wait(room)

    assert way.has_returned(room)
    assert room.on_host(3).tolist() == [0, 2, 4]
    assert notes == [  # 1 computes, 2 sends, 3 returns
        "3 values of pinned",
        "3 values of device, stream 2",
        "event on stream 2 recorded",
        "stream 1 waits for event on stream 2",
        "3 values of device, stream 1",
        "event on stream 1 recorded",
        "stream 3 waits for event on stream 1",
        "3 values of pinned",
        "event on stream 3 recorded",
        "host waits for event on stream 3",
    ]


def test_a_room_is_used_again_and_a_batch_beside_it_has_another(notes: Notes) -> None:
    way = staging.Staging(torch.device("cuda:0"))
    first, second = way.take(), way.take()
    send(way, first, np.ones(4, np.float32))
    send(way, second, np.full(4, 2, np.float32))
    for room in (first, second):
        way.wait(room)
        way.give(room)
    allocated = notes.pinned

    again = way.take()
    send(way, again, np.full(3, 5, np.float32))
    way.wait(again)

    assert again in (first, second)
    assert first is not second
    assert again.on_host(3).tolist() == [10, 10, 10]
    assert notes.pinned == allocated


def test_a_batch_that_failed_gives_its_room_back_once_the_device_has_done(notes: Notes) -> None:
    way = staging.Staging(torch.device("cuda:0"))
    room = way.take()

    way.let_go(room)

    assert notes[-1] == "host waits for all"
    assert way.take() is room


def test_copies_in_line_are_on_the_stream_that_computes(notes: Notes) -> None:
    way = staging.Staging(torch.device("cuda:0"), overlapped=False)
    send(way, way.take(), np.ones(2, np.float32))

    assert notes.streams == 1
