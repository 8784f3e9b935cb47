"""Ends actors of a job that runs in threads, at steps: its driver sees them end."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray_of_threads import Handle, RayOfThreads

from ps.server.actor import ServerActor
from scheduler.coordinator.actor import CoordinatorActor


class Killer:
    """Ends actors of a job when its shards have come to steps: so the driver sees them end.

    Args:
        kills: role and number of who is killed, and at which step.
    """

    def __init__(self, fake: RayOfThreads, kills: list[tuple[str, int, int]]) -> None:
        self.killed: list[Handle] = []
        self._fake = fake
        self._kills = kills
        self._thread = threading.Thread(target=self._kill_them, daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for handle in self.killed:
            handle.instance.close()

    def _kill_them(self) -> None:
        for role, index, step in self._kills:
            while not self._over.is_set() and self._step() < step:
                time.sleep(0.002)
            if self._over.is_set():
                return
            handle = self._of(role)[index]
            self.killed.append(handle)
            handle.kill()

    def _step(self) -> int:
        """Return the step that all shards that live have reached, in a job that is under way."""
        servers = [handle.instance for handle in self._of("server")]
        if len(servers) < 2 or not self._of("coordinator"):
            return -1
        with contextlib.suppress(AttributeError):  # one has not begun
            if not any(server._shard.fenced for server in servers):
                return min(server._shard.step for server in servers)
        return -1

    def _of(self, role: str) -> list[Handle]:
        kind = {"server": ServerActor, "coordinator": CoordinatorActor}[role]
        actual = kind.__ray_metadata__.modified_class
        living = [h for h in self._fake.handles if type(h.instance) is actual and not h.killed]
        # A new one is the last that was made.
        return sorted(living, key=lambda handle: getattr(handle.instance, "_index", 0))


@contextmanager
def disturbed(fake: RayOfThreads, *kills: tuple[str, int, int]) -> Iterator[Killer]:
    fake.handles.clear()
    with Killer(fake, list(kills)) as killer:
        yield killer
    assert len(killer.killed) == len(kills)
