"""Find a running job by its run directory, and ask things of it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from scheduler.coordinator.events import CutWanted, Wanted
from scheduler.coordinator.history import EVERYTHING, Told
from scheduler.coordinator.status import CutResult, Status
from scheduler.driver.processes import Processes
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line
from scheduler.errors import ControlError, NotRunningError
from scheduler.run.control_file import check_reachable, find_job, last_known, unreachable
from scheduler.run.lease import is_held

# Joining takes .05 s where the cluster answers; Ray itself tries for 20 s, or without end.
JOIN_SECONDS = 3.0
POLL_SECONDS = 0.25
# How long a command waits for a coordinator in the place of one that is lost. Seconds, as a rule;
# where a node is gone without notice Ray takes a minute to see it.
REPLACED_SECONDS = 20.0


def control_facts(processes: Processes, *, recovery_epoch: int) -> dict[str, Any]:
    """Return what control.json holds: where the coordinator is to be found."""
    context = ray.get_runtime_context()
    return {
        "ray_address": context.gcs_address,
        "namespace": context.namespace,
        # Ray turns tokens on itself where it starts a cluster, but not where it joins one.
        "auth_mode": os.environ.get("RAY_AUTH_MODE", "disabled"),
        "coordinator": processes.coordinator.name,
        "recovery_epoch": recovery_epoch,
    }


class RunningJob:
    """A job that runs in another process.

    Raises:
        ControlError: from every method, where the job does not answer or can't do it.
    """

    def __init__(self, run: Path, facts: dict[str, Any]) -> None:
        self._run = run
        self._facts = facts
        self._coordinator = self._found()

    def status(self, told: Told = EVERYTHING) -> Status:
        """Return the status as it is, with what was not told yet; by default nothing of before."""
        status: Status = self._ask(lambda coordinator: coordinator.look.remote(told))
        return status

    def order(self, wanted: Wanted) -> None:
        """Ask for something; the job does it in its own time."""
        self._ask(lambda coordinator: coordinator.order.remote(wanted))

    def checkpoint(self) -> CutResult:
        """Have a checkpoint written, and wait for it."""
        told = EVERYTHING
        while True:
            status = self.status(told)
            if told.recovery_epoch != status.recovery_epoch:  # else what was asked is forgotten
                told = replace(
                    EVERYTHING, cuts=status.told.cuts, recovery_epoch=status.recovery_epoch
                )
                self.order(CutWanted())
            for cut in status.cuts:
                if cut.asked:
                    return cut
            time.sleep(POLL_SECONDS)

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        while True:
            try:
                return ray.get(call(self._coordinator), timeout=CALL_TIMEOUT_SECONDS)
            except RayTaskError as error:
                raise ControlError(str(error.cause)) from error
            except RayActorError as error:
                self._coordinator = self._another(first_line(error), error)
            except GetTimeoutError as error:
                raise ControlError(f"the job does not answer: {first_line(error)}") from error

    def _found(self) -> Any:
        try:
            return self._actor()
        except ValueError as error:
            return self._another("its coordinator is gone", error)

    def _actor(self) -> Any:
        return ray.get_actor(self._facts["coordinator"], namespace=self._facts["namespace"])

    def _another(self, why: str, cause: Exception) -> Any:
        """Return the coordinator that takes the place of one that is gone.

        Raises:
            NotRunningError: the job has ended.
            ControlError: it has none yet.
        """
        gone, until = self._facts["coordinator"], time.monotonic() + REPLACED_SECONDS
        while is_held(self._run):
            self._facts = find_job(self._run)
            if self._facts["coordinator"] != gone:
                with contextlib.suppress(ValueError):
                    return self._actor()
            if time.monotonic() > until:
                raise ControlError(
                    f"the job of {self._run} has lost its coordinator and has no other one yet;"
                    " try again later"
                ) from cause
            time.sleep(POLL_SECONDS)
        raise NotRunningError(
            f"the job of {self._run} has ended: {why}. {last_known(self._run)}"
        ) from cause


@contextmanager
def running_job(run: Path, facts: dict[str, Any]) -> Iterator[RunningJob]:
    """Connect to the job that runs in a run directory.

    Args:
        facts: what `control_file.find_job` says of it.

    Raises:
        NotRunningError: it can't be reached.
    """
    joined = ray.is_initialized()
    if not joined:
        check_reachable(run, facts)
        _join(facts, run)
    try:
        yield RunningJob(run, facts)
    finally:
        if not joined:
            ray.shutdown()


def _join(facts: dict[str, Any], run: Path) -> None:
    """Join a job's Ray cluster; where that takes too long, the thread that tries is left behind."""
    failures: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(
                address=facts["ray_address"],
                namespace=facts["namespace"],
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            failures.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(JOIN_SECONDS)
    if not failures and not thread.is_alive():
        return
    find_job(run)  # It may have ended just now, which says more.
    if failures:
        raise unreachable(run, facts, first_line(failures[0])) from failures[0]
    raise unreachable(
        run,
        facts,
        f"it lets nobody in within {JOIN_SECONDS:.0f} s (a token of Ray's that is missing or wrong,"
        " or a head that hangs)",
    )
