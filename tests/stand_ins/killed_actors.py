"""Ends actors of a job that runs in threads, at steps: its driver sees them end."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from held_back import hold_back
from ray_of_threads import Handle, RayOfThreads

import scheduler.driver.trainer
from ps.server.actor import ServerActor
from scheduler.coordinator.actor import CoordinatorActor
from scheduler.driver.epochs import Epochs

END_SECONDS = 60.0


class Killer:
    """Ends actors of a job when its shards have come to steps: so the driver sees them end.

    The job goes on slowly while somebody is due to be ended, until the driver sees to it, and while
    a cut is written: so it has as many as are due, and does not end before.

    Args:
        kills: role and number of who is killed, and at which step.
        met: what has to be so, beside.
    """

    def __init__(
        self, fake: RayOfThreads, kills: list[tuple[str, int, int]], met: Callable[[], bool]
    ) -> None:
        self.killed: list[Handle] = []
        self._fake = fake
        self._kills = kills
        self._met = met
        self._unseen = False  # by the driver, that somebody was ended
        self._thread = threading.Thread(target=self._kill_them, daemon=True)
        self._over = threading.Event()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "Killer":
        begin, finish = Epochs.begin, scheduler.driver.trainer.finish

        def seen(epochs: Epochs, *args: Any, **options: Any) -> Any:
            self._unseen = False
            return begin(epochs, *args, **options)

        def finish_later(*args: Any, **options: Any) -> Any:
            until = time.monotonic() + END_SECONDS
            while self._is_due() and time.monotonic() < until:
                time.sleep(0.002)
            return finish(*args, **options)

        self._patch.setattr(Epochs, "begin", seen)
        self._patch.setattr(scheduler.driver.trainer, "finish", finish_later)
        hold_back(self._patch, self._is_awaited)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._patch.undo()
        for handle in self.killed:
            handle.instance.close()

    def _kill_them(self) -> None:
        while len(self.killed) < len(self._kills) and not self._over.is_set():
            if not self._is_due() or not self._met():
                time.sleep(0.002)
                continue
            role, index, _ = self._kills[len(self.killed)]
            handle = self._of(role)[index]
            self._unseen = True
            self.killed.append(handle)
            handle.kill()

    def _is_due(self) -> bool:
        done = len(self.killed)
        return done < len(self._kills) and self._step() >= self._kills[done][2]

    def _is_awaited(self) -> bool:
        return not self._over.is_set() and (self._unseen or self._is_cut() or self._is_due())

    def _is_cut(self) -> bool:
        """Whether a cut is being written."""
        for handle in self._of("coordinator"):
            with contextlib.suppress(AttributeError):  # it has not begun
                return handle.instance._server._coordinator.cuts.running is not None
        return False

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
        every = list(self._fake.handles)
        living = [h for h in every if type(h.instance) is actual and not h.killed]
        # A new one is the last that was made.
        return sorted(living, key=lambda handle: getattr(handle.instance, "_index", 0))


@contextmanager
def disturbed(
    fake: RayOfThreads, *kills: tuple[str, int, int], met: Callable[[], bool] = lambda: True
) -> Iterator[Killer]:
    fake.handles.clear()
    with Killer(fake, list(kills), met) as killer:
        yield killer
    assert len(killer.killed) == len(kills)
