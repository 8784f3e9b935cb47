"""A job that does not end before something has happened, however fast it trains."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.coordinator.events import PauseWanted, Wanted
from scheduler.driver.resizing import Resizing
from scheduler.driver.supervisor import Supervisor


def order(supervisor: Supervisor, wanted: Wanted) -> None:
    supervisor.processes.coordinator.handle.order.remote(wanted)


def pause(supervisor: Supervisor, paused: bool = True) -> None:
    order(supervisor, PauseWanted(paused))


def hold_the_end(
    monkeypatch: pytest.MonkeyPatch, happened: Callable[[], bool], *, at_step: Callable[[], int]
) -> None:
    """Pause a job at a step until something has happened; a pause changes no bit of it."""
    status_of, free = Supervisor.status, list[bool]()

    def status(supervisor: Supervisor) -> Any:
        found = status_of(supervisor)
        if found.applied_step >= at_step() and not free:
            if happened():
                free.append(True)
            pause(supervisor, not free)
        return found

    monkeypatch.setattr(Supervisor, "status", status)


def count_hand_overs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return what gets an entry with every move of buckets whose hand-over has begun."""
    took_over, made = Resizing.took_over, list[None]()

    def moved(resizing: Resizing, new: Any) -> None:
        took_over(resizing, new)
        made.append(None)

    monkeypatch.setattr(Resizing, "took_over", moved)
    return made
