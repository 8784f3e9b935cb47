"""Find a running job by its run directory, and ask things of it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from scheduler.coordinating import CutResult, Status
from scheduler.errors import ControlError
from scheduler.events import CutWanted, Wanted
from scheduler.launching import Processes
from scheduler.ray_errors import first_line
from scheduler.run_files import CONTROL_FILE, FAILURE_FILE, JOB_FILE, RESULT_FILE

CALL_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.25


def control_facts(processes: Processes, *, recovery_epoch: int) -> dict[str, Any]:
    """Return what control.json holds: where the coordinator is to be found."""
    context = ray.get_runtime_context()
    return {
        "ray_address": context.gcs_address,
        "namespace": context.namespace,
        "coordinator": processes.coordinator_name,
        "recovery_epoch": recovery_epoch,
    }


class RunningJob:
    """A job that runs in another process.

    Raises:
        ControlError: from every method, where the job does not answer or can't do it.
    """

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def status(self) -> Status:
        """Return the status as it is."""
        status: Status = self._ask(self._coordinator.look.remote())
        return status

    def order(self, wanted: Wanted) -> None:
        """Ask for something; the job does it in its own time."""
        self._ask(self._coordinator.order.remote(wanted))

    def checkpoint(self) -> CutResult:
        """Have a checkpoint written, and wait for it."""
        before = len(self.status().cuts)
        self.order(CutWanted())
        while len(cuts := self.status().cuts) == before:
            time.sleep(POLL_SECONDS)
        return cuts[before]

    def _ask(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        except RayTaskError as error:
            raise ControlError(str(error.cause)) from error
        except (RayActorError, GetTimeoutError) as error:
            raise ControlError(f"the job does not answer: {first_line(error)}") from error


@contextmanager
def running_job(run: Path) -> Iterator[RunningJob]:
    """Connect to the job that runs in a run directory.

    Raises:
        ControlError: none runs there, or it can't be reached.
    """
    facts = _facts(run)
    joined = ray.is_initialized()
    if not joined:
        _join(facts["ray_address"], facts["namespace"], run)
    try:
        try:
            actor = ray.get_actor(facts["coordinator"], namespace=facts["namespace"])
        except ValueError as error:
            raise ControlError(f"the job of {run} has ended: its coordinator is gone") from error
        yield RunningJob(actor)
    finally:
        if not joined:
            ray.shutdown()


def _facts(run: Path) -> dict[str, Any]:
    if not (run / JOB_FILE).exists():
        raise ControlError(f"{run} is not a run directory: it has no {JOB_FILE}")
    for name, text in ((RESULT_FILE, "has ended"), (FAILURE_FILE, "has failed")):
        if (run / name).exists():
            raise ControlError(f"the job of {run} {text}; see {run / name}")
    try:
        facts: dict[str, Any] = json.loads((run / CONTROL_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ControlError(
            f"no job runs in {run}, or it is still starting: it has no {CONTROL_FILE}"
        ) from error
    missing = {"ray_address", "namespace", "coordinator"} - set(facts)
    if missing:
        raise ControlError(f"{run / CONTROL_FILE} has no {', '.join(sorted(missing))}")
    return facts


def _join(address: str, namespace: str, run: Path) -> None:
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ControlError(
            f"the Ray cluster of {run} at {address} can't be reached: {first_line(error)}. The job"
            " was perhaps killed; else run this where the cluster can be reached"
        ) from error
