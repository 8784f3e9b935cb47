"""How each kind of fault is done to a job that trains, and what came of it."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from injection.draw import Fault, Role
from injection.nodes import LONG_NOTICE_SECONDS, SHORT_NOTICE_SECONDS, Nodes
from injection.processes import is_there, kill, of_role, send
from injection.training import FaultFoundError, Reached, Training
from scheduler.run.directory import CHECKPOINTS, EPOCH_FILE, checkpoints_of

# For a cut to begin, a process to come up or an epoch to be entered, before it is gone without.
MOMENT_SECONDS = 20.0
QUICK_LOOK_SECONDS = 0.005
FILLER = "filler"
NO_CHANCE = "no chance"
"""What came of a fault that could not be done: the job was over, or its moment did not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of a fault.

    Args:
        step: that the job had reached.
        whom: ids of the processes that it befell, or what else it did.
        outcome: a word or two.
        seconds: until the job was whole again and further than before.
        redone_steps: that were applied again.
    """

    step: int
    whom: list[Any]
    outcome: str
    seconds: float = 0.0
    redone_steps: int = 0


class Injector:
    """Does faults to one job.

    Attributes:
        damaged: names of the checkpoints that were damaged.
    """

    def __init__(self, training: Training, nodes: Nodes | None = None) -> None:
        self.damaged: set[str] = set()
        self._training = training
        self._nodes = nodes
        self._at = (training.reached, 0, 0.0)
        self._kinds: dict[str, Callable[[Fault], tuple[list[Any], str]]] = {
            "worker_killed": self._killed,
            "server_killed": self._killed,
            "coordinator_killed": self._killed,
            "several_killed": self._killed,
            "killed_in_cut": self._killed_in_cut,
            "killed_in_recovery": self._killed_in_recovery,
            "frozen_short": self._frozen,
            "frozen_long": self._frozen,
            "driver_killed": self._driver_killed,
            "driver_terminated": self._driver_terminated,
            "checkpoint_damaged": self._checkpoint_damaged,
            "disk_full": self._disk_full,
            "killed_on_full_disk": self._disk_full,
            "node_removed": self._node_removed,
            "node_crashed": self._node_crashed,
            "node_drained": self._node_drained,
            "node_drained_in_time": self._node_drained_in_time,
            "node_frozen": self._node_frozen,
            "raylet_frozen": self._node_frozen,
        }

    def do(self, fault: Fault) -> Done:
        """Do a fault, wait until the job has made it good, and say what came of it.

        Raises:
            FaultFoundError: it has not, or not in the way that it should.
        """
        training = self._training
        training.look()
        if training.is_over:
            return Done(step=training.reached.step, whom=[], outcome=NO_CHANCE)
        self._now()
        whom, outcome = self._kinds[fault.kind](fault)
        before, lines, began = self._at
        if outcome == NO_CHANCE:
            return Done(step=before.step, whom=whom, outcome=outcome)
        if not training.until_made_good(before):
            outcome += ", at the end"
        if self._nodes is not None:
            self._nodes.fill_up()
        return Done(
            step=before.step,
            whom=whom,
            outcome=outcome,
            seconds=round(time.monotonic() - began, 2),
            redone_steps=_redone(training.lines[lines:], before),
        )

    def _now(self) -> None:
        """The fault comes now: what the job has reached is what it has to get beyond."""
        training = self._training
        self._at = training.reached, len(training.lines), time.monotonic()

    # Processes --------------------------------------------------------------------------------

    def _some(self, roles: tuple[Role, ...], pick: int) -> list[psutil.Process]:
        """Return as many processes, each of its role, no one twice; fewer where there are fewer."""
        found: list[psutil.Process] = []
        for role in roles:
            others = [each for each in of_role(role) if each not in found]
            if others:
                found.append(others[pick % len(others)])
        return found

    def _one(self, role: Role, pick: int) -> list[psutil.Process]:
        """Return a process of a role, as soon as there is one."""
        limit = time.monotonic() + MOMENT_SECONDS
        while True:
            found = self._some((role,), pick)
            if found or time.monotonic() > limit:
                return found
            time.sleep(0.02)

    def _killed(self, fault: Fault) -> tuple[list[Any], str]:
        return kill(self._some(fault.roles, fault.pick)), "went on"

    def _killed_in_cut(self, fault: Fault) -> tuple[list[Any], str]:
        victims = self._some(fault.roles, fault.pick)
        folder = self._training.run / CHECKPOINTS
        seen = self._training.until(
            lambda: any(folder.glob("*.partial*")),
            MOMENT_SECONDS,
            "a cut that is being written",
            every=QUICK_LOOK_SECONDS,
        )
        self._now()
        return (kill(victims), "went on") if seen else ([], NO_CHANCE)

    def _killed_in_recovery(self, fault: Fault) -> tuple[list[Any], str]:
        epoch = self._training.run / EPOCH_FILE
        before = _text(epoch)
        first, second = fault.roles
        killed = kill(self._some((first,), fault.pick))
        self._training.until(
            lambda: _text(epoch) != before,
            MOMENT_SECONDS + 20.0,
            "a new recovery epoch",
            every=QUICK_LOOK_SECONDS,
        )
        time.sleep(fault.seconds)
        return [*killed, *kill(self._one(second, fault.pick))], "went on"

    def _frozen(self, fault: Fault) -> tuple[list[Any], str]:
        victims = self._some(fault.roles, fault.pick)
        return [each.pid for each in victims], self._freeze(victims, fault.seconds)

    def _freeze(self, victims: list[psutil.Process], seconds: float) -> str:
        send(victims, signal.SIGSTOP)
        try:
            limit = time.monotonic() + seconds
            while time.monotonic() < limit and not self._training.is_over:
                self._training.look()
                time.sleep(0.1)
        finally:
            send(victims, signal.SIGCONT)
        # A process that is frozen can't be told to end: it does so once it thaws.
        self._training.until_made_good(self._training.reached)
        return "lived on" if all(map(is_there, victims)) else "replaced"

    def _driver_killed(self, _: Fault) -> tuple[list[Any], str]:
        driver = self._training.driver
        driver.kill()
        return self._resumed(driver.pid)

    def _driver_terminated(self, _: Fault) -> tuple[list[Any], str]:
        driver, began = self._training.driver, time.monotonic()
        driver.terminate()
        code = driver.wait(60.0)
        if code == 0:
            return [driver.pid], NO_CHANCE  # it was about to end
        if code != 130:
            raise FaultFoundError(f"exit code {code} after SIGTERM: {self._training.last_words()}")
        whom, outcome = self._resumed(driver.pid)
        return [*whom, f"ended after {time.monotonic() - began:.1f} s"], outcome

    def _resumed(self, pid: int) -> tuple[list[Any], str]:
        self._training.until_gone(soon=True)
        self._training.start()
        return [pid], "resumed"

    # Files ------------------------------------------------------------------------------------

    def _checkpoint_damaged(self, fault: Fault) -> tuple[list[Any], str]:
        found = [p for p in checkpoints_of(self._training.run) if isinstance(p, Path)]
        if not found:
            return [], NO_CHANCE
        newest = found[-1]
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        # Rather one with rows in it than an empty one.
        files.sort(key=lambda path: -path.stat().st_size)
        path = files[fault.pick % min(len(files), 6)]
        said = self._training.log.stat().st_size
        self.damaged.add(newest.name)
        damage(path, fault.how, fault.pick)
        pids = kill(self._some(("server",), fault.pick))
        whom = [*pids, f"{fault.how} {path.relative_to(newest.parent)}"]
        before = self._training.reached
        self._training.until_made_good(before)
        lines = self._training.log.read_text(errors="replace")[said:].splitlines()
        gone_back = [line for line in lines if "goes back to" in line or "goes on from" in line]
        if not gone_back:
            raise FaultFoundError(f"{whom}: nothing is said of where the job goes back to")
        if newest.name in gone_back[-1] and fault.how != "flip":
            raise FaultFoundError(f"{whom}: {gone_back[-1]}")
        if newest.name in gone_back[-1]:
            return whom, "not in what is read"  # between two parts of a file, say
        told = any(newest.name in line and line not in gone_back for line in lines)
        return whom, "fell back, told" if told else "a newer one was there"

    def _disk_full(self, fault: Fault) -> tuple[list[Any], str]:
        said = self._training.log.stat().st_size
        filler = self._training.run.parent / FILLER
        fill(filler)
        whom: list[Any] = [f"for {fault.seconds + 2.0:.1f} s"]
        try:
            if fault.kind == "killed_on_full_disk":
                whom += kill(self._some(("server",), fault.pick))
            limit = time.monotonic() + fault.seconds + 2.0
            while time.monotonic() < limit and self._training.driver.poll() is None:
                time.sleep(0.1)
        finally:
            filler.unlink()
        words = self._training.log.read_text(errors="replace")[said:]
        told = "No space left" in words
        if self._training.driver.poll() and told:
            # It needs the disk for the final checkpoint and to go back: it says so, and can be gone
            # on with.
            return whom, f"ended, told; {self._resumed(0)[1]}"
        return whom, "went on, told" if told else "went on"

    # Nodes ------------------------------------------------------------------------------------

    def _node(self, pick: int) -> tuple[Nodes, Any, list[psutil.Process]] | None:
        assert self._nodes is not None, "the fault is for a cluster"
        found = self._nodes.with_actors()
        return (self._nodes, *found[pick % len(found)]) if found else None

    def _node_removed(self, fault: Fault) -> tuple[list[Any], str]:
        return self._without_node(fault, with_goodbye=True)

    def _node_crashed(self, fault: Fault) -> tuple[list[Any], str]:
        return self._without_node(fault, with_goodbye=False)

    def _node_drained(self, fault: Fault) -> tuple[list[Any], str]:
        return self._without_node(fault, with_goodbye=True, notice=SHORT_NOTICE_SECONDS)

    def _node_drained_in_time(self, fault: Fault) -> tuple[list[Any], str]:
        lines = len(self._training.lines)
        whom, outcome = self._without_node(fault, with_goodbye=True, notice=LONG_NOTICE_SECONDS)
        if outcome != "moved":
            return whom, outcome
        self._training.look()
        returns = [r for line in self._training.lines[lines:] for r in line["recoveries"]]
        if any(each["redone_steps"] for each in returns):
            raise FaultFoundError(f"{whom}: a move has done steps again: {returns}")
        return whom, outcome

    def _without_node(
        self, fault: Fault, *, with_goodbye: bool, notice: int = 0
    ) -> tuple[list[Any], str]:
        found = self._node(fault.pick)
        if found is None:
            return [], NO_CHANCE
        nodes, node, processes = found
        outcome = "went on"
        if notice:
            nodes.drain(node, notice)
            limit = time.monotonic() + notice
            while time.monotonic() < limit and not self._training.is_over:
                self._training.look()
                if not nodes.has_actors(node):
                    outcome = "moved"
                    break
                time.sleep(0.2)
        nodes.remove(node, with_goodbye=with_goodbye)
        # A node that is killed does not always take its workers with it at once.
        kill(processes)
        return [each.pid for each in processes], outcome

    def _node_frozen(self, fault: Fault) -> tuple[list[Any], str]:
        found = self._node(fault.pick)
        if found is None:
            return [], NO_CHANCE
        nodes, node, processes = found
        if fault.kind == "raylet_frozen":
            processes = [nodes.raylet(node)]
        outcome = self._freeze(processes, fault.seconds)
        nodes.remove(node, with_goodbye=False)
        return [each.pid for each in processes], outcome


def damage(path: Path, how: str, pick: int) -> None:
    """Damage a file in place, as a disk or a person would."""
    size = path.stat().st_size
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        os.truncate(path, size // 2)
    elif size:
        with open(path, "r+b") as file:
            at = size // 4 + pick % max(1, size // 2)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))


def fill(path: Path) -> None:
    """Write a file until its file system has no room for another byte."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def _redone(lines: list[dict[str, Any]], before: Reached) -> int:
    """Return how many steps were applied again, as the job says or its metrics show."""
    said = sum(each["redone_steps"] for line in lines for each in line.get("recoveries", []))
    return int(max([said, *(before.step - line["global_step"] for line in lines)], default=0))


def _text(path: Path) -> str:
    try:
        return str(json.loads(path.read_text()))
    except FileNotFoundError:
        return ""
