import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ps.server.read_write_lock import ReadWriteLock


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Crowd:
    """Threads that want the lock, each until it is let go; `order` is who held it when."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self.lock = lock
        self.order: list[str] = []
        self._leave: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def enter(self, name: str) -> None:
        """Start a thread: a writer's name begins with w; returns when it holds it or waits."""
        side = self.lock.exclusive if name.startswith("w") else self.lock.shared
        leave = self._leave[name] = threading.Event()
        waiting = self.num_waiting

        def work() -> None:
            with side():
                self.order.append(name)
                leave.wait(60)

        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        until(lambda: name in self.order or self.num_waiting > waiting)

    @property
    def num_waiting(self) -> int:
        return len(self.lock._waiting_readers) + len(self.lock._waiting_writers)

    def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()

    def holds(self, *names: str) -> None:
        """Wait until these have come to hold the lock."""
        until(lambda: set(names) <= set(self.order))

    def end(self) -> None:
        for event in self._leave.values():
            event.set()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def crowd() -> Iterator[Crowd]:
    made = Crowd(ReadWriteLock())
    try:
        yield made
    finally:
        made.end()


def test_readers_hold_the_lock_together_and_a_writer_alone() -> None:
    with crowd() as them:
        for name in ("r1", "r2", "w1"):
            them.enter(name)
        assert them.order == ["r1", "r2"]

        them.leave("r1")
        time.sleep(0.02)
        assert them.order == ["r1", "r2"], "one reader is left"
        them.leave("r2")
        them.holds("w1")
        them.enter("r3")
        assert them.order == ["r1", "r2", "w1"]


def test_a_writer_that_waits_goes_before_readers_that_come_later() -> None:
    with crowd() as them:
        for name in ("r1", "w1", "r2", "r3"):
            them.enter(name)
        assert them.order == ["r1"]

        them.leave("r1")
        them.holds("w1")
        assert them.order == ["r1", "w1"]


def test_readers_that_wait_go_before_the_next_writer() -> None:
    with crowd() as them:
        for name in ("w1", "w2", "w3", "r1", "r2"):
            them.enter(name)

        them.leave("w1")
        them.holds("r1", "r2")
        assert set(them.order) == {"w1", "r1", "r2"}
        them.leave("r1", "r2")
        them.holds("w2")
        them.leave("w2")
        them.holds("w3")
        assert them.order[3:] == ["w2", "w3"], "writers in the order in which they came"


def test_what_is_raised_inside_leaves_the_lock_free() -> None:
    lock = ReadWriteLock()
    for side in (lock.shared, lock.exclusive):
        try:
            with side():
                raise ValueError
        except ValueError:
            pass

    with lock.exclusive():
        pass


def test_many_readers_and_writers_never_overlap_and_all_of_them_end() -> None:
    lock = ReadWriteLock()
    state = [0, 0]
    torn: list[tuple[int, int]] = []

    def write() -> None:
        for _ in range(300):
            with lock.exclusive():
                state[0] += 1
                time.sleep(0)
                state[1] += 1

    def read() -> None:
        for _ in range(300):
            with lock.shared():
                before = tuple(state)
                time.sleep(0)
                if before != tuple(state) or before[0] != before[1]:
                    torn.append(before)  # type: ignore[arg-type]

    threads = [threading.Thread(target=target) for target in [write, read, read] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert torn == []
    assert state == [900, 900]
