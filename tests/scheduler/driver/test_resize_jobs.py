"""A job of processes whose servers change in number, and whose processes are killed around that."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from held_end import count_hand_overs, hold_the_end, order, pause
from ray_of_threads import train_in_threads
from saved_job import saved_job

from scheduler import JobConfig, Trainer
from scheduler.coordinator.events import ServersWanted
from scheduler.driver.resizing import Resizing
from scheduler.driver.supervisor import Supervisor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LATE_STEP = 20  # of 40: where it waits for the move; some steps are left for what comes after
# Batches that take so long leave the driver time to look at the job.
SLOW = {"kind": "slow", "index": [0, 1], "least_seconds": 0.1}


def job(samples: Path, run: Path, **cluster: Any) -> JobConfig:
    sections: dict[str, Any] = {
        "cluster": {"workers": 2, "servers": 2, **cluster},
        "checkpoint": {"every_steps": 5, "every_seconds": None},
        "run": {"dir": str(run), "allow_faults": True},
    }
    return JobConfig.from_dict(saved_job(samples, run, **sections))


def killed(process: Any) -> None:
    """End a process by SIGKILL, and see it gone."""
    found = psutil.Process(process.facts["pid"])
    found.send_signal(signal.SIGKILL)
    psutil.wait_procs([found], timeout=30)


def in_the_hold(kill: Callable[[Resizing], None]) -> Callable[[Resizing], None]:
    def when(resizing: Resizing) -> bool:
        return resizing.stands_still

    return _once(when, kill)


def while_rows_come(kill: Callable[[Resizing], None]) -> Callable[[Resizing], None]:
    def when(resizing: Resizing) -> bool:
        return resizing._work.__name__ in ("_take_in", "_await_taken")

    return _once(when, kill)


def _once(
    when: Callable[[Resizing], bool], kill: Callable[[Resizing], None]
) -> Callable[[Resizing], None]:
    done: list[None] = []

    def look(resizing: Resizing) -> None:
        if not done and when(resizing):
            done.append(None)
            kill(resizing)

    return look


@pytest.mark.parametrize(
    ("during", "after"),
    [
        pytest.param(
            while_rows_come(lambda resizing: killed(resizing._processes.servers[1])),
            lambda supervisor: supervisor.processes.servers[2],
            id="servers",
        ),
        pytest.param(
            in_the_hold(lambda resizing: killed(resizing._processes.coordinator)),
            lambda supervisor: supervisor.processes.coordinator,
            id="coordinators",
        ),
    ],
)
def test_whoever_is_killed_before_during_and_after_a_move_no_bit_is_another(
    ray_cluster: None,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: Callable[[Resizing], None],
    after: Callable[[Supervisor], Any],
) -> None:
    calm = train_in_threads(job(samples, tmp_path / "calm")).metrics
    made = count_hand_overs(monkeypatch)
    ends: list[str] = []
    look, status_of = Resizing.look, Supervisor.status

    def watched(resizing: Resizing, status: Any, **options: Any) -> None:
        during(resizing)
        look(resizing, status, **options)

    def status(supervisor: Supervisor) -> Any:
        found = status_of(supervisor)
        step, moved = found.applied_step, bool(supervisor.resizing.done)
        if "before" not in ends and step >= 3:
            ends.append("before")
            killed(supervisor.processes.servers[0])
        elif "before" in ends and "wanted" not in ends and step >= 6:
            ends.append("wanted")
            order(supervisor, ServersWanted(3))
        elif moved and "after" not in ends:
            ends.append("after")
            killed(after(supervisor))
        if found.paused and step < LATE_STEP:  # it went back to before its end was held
            pause(supervisor, False)
        return found

    monkeypatch.setattr(Resizing, "look", watched)
    monkeypatch.setattr(Supervisor, "status", status)
    hold_the_end(monkeypatch, lambda: bool(made), at_step=lambda: LATE_STEP)

    metrics = Trainer(job(samples, tmp_path / "run", inject=[SLOW])).fit().metrics

    assert metrics["model_digest"] == calm["model_digest"]
    assert len(made) == 1
    assert [move["after"] for move in metrics["server_moves"]] == [3]
    kinds = [recovery["kind"] for recovery in metrics["recoveries"]]
    # Who dies in the hold may be missed in the hand-over only: the two are one recovery then.
    assert kinds in (["loss", "loss", "move", "loss"], ["loss", "loss", "loss"])
    assert metrics["samples_trained"] == calm["samples_trained"]
