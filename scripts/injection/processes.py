"""The processes of a run: who is below this one, and in which role."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from injection.draw import ROLES, Role

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_TITLES: dict[Role, str] = {
    "worker": "WorkerActor",
    "server": "ServerActor",
    "coordinator": "CoordinatorActor",
}


def adopt_orphans() -> None:
    """Become the parent of every process below whose own parent dies, so that none gets lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def below(also: Callable[[psutil.Process], bool] = lambda _: True) -> list[psutil.Process]:
    """Return the processes below this one that are not over, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and also(process):
                found.append((process.create_time(), process.pid, process))
    return [process for _, _, process in sorted(found, key=lambda each: each[:2])]


def of_role(role: Role) -> list[psutil.Process]:
    """Return the actors of a role, the oldest first; one that has just come up may be missing."""
    return below(lambda process: role_of(process) == role)


def roles_now() -> dict[Role, int]:
    """Return how many processes there are of each role."""
    found = dict.fromkeys(ROLES, 0)
    for process in below():
        with suppress(psutil.Error):
            role = role_of(process)
            if role is not None:
                found[role] += 1
    return found


def role_of(process: psutil.Process) -> Role | None:
    """Tell by the title that Ray gives an actor's process, such as `ray::ServerActor.watch`."""
    line = process.cmdline()
    title = line[0] if line else ""
    if not title.startswith("ray::"):
        return None
    return next((role for role, name in _TITLES.items() if name in title), None)


def kill(processes: Iterable[psutil.Process]) -> list[int]:
    """Kill processes as one, each by SIGKILL to its id; return the ids of those that were there."""
    killed = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process.pid)
    return killed


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes; skips those that are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_there(process: psutil.Process) -> bool:
    """Whether a process is not over; another one that has got its id is not it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reap(*, but: Iterable[int]) -> None:
    """Let adopted processes that are over go; children whose exit code is wanted are left."""
    kept = set(but)
    for process in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if process.pid not in kept and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def until_gone(processes: Callable[[], list[psutil.Process]], seconds: float) -> list[str]:
    """Wait until there are none; return what is left after so long, as text."""
    limit = time.monotonic() + seconds
    while True:
        left = processes()
        if not left or time.monotonic() > limit:
            return [_described(process) for process in left]
        time.sleep(0.1)


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:100]} ({process.status()})"
    except psutil.Error:
        return f"{process.pid}"
