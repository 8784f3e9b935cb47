"""Write the model that the servers hold as a checkpoint."""

import time
from dataclasses import dataclass
from typing import Any

import ray

from embedding import rule_for
from ps.checkpoint.digest import shards_digest
from ps.checkpoint.manifest import MANIFEST, write_manifest
from ps.checkpoint.write import begin_checkpoint, give_up_checkpoint, publish_checkpoint
from ps.server.server import ShardCut
from ps.spec import StoreSpec
from runtime.places import Place, is_file
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.growing_plan import PlanState
from scheduler.coordinator.status import Status
from scheduler.driver.answers import answers_of
from scheduler.driver.manifests import manifest_of
from scheduler.driver.processes import COORDINATOR, Processes, Who
from scheduler.driver.ray_calls import seconds_to_move
from scheduler.driver.resolved import JobSpecs
from scheduler.errors import TrainingError
from scheduler.run.directory import RunDirectory


def _digest(store: StoreSpec, cuts: list[ShardCut]) -> str:
    """Return the model digest of what all servers have written."""
    return shards_digest(store.routing, [c.tables for c in cuts], [c.blocks for c in cuts])


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint of the job that runs: its place, its step, and the digest of the model.

    Of a job on a stream it has the plan, too. A step of another recovery epoch may be another
    state.
    """

    path: Place
    step: int
    recovery_epoch: int
    digest: str
    plan: PlanState | None = None

    @property
    def is_there(self) -> bool:
        """Whether nobody has removed it."""
        return is_file(self.path / MANIFEST)


class CheckpointWriter:
    """Writes checkpoints of one job.

    Args:
        specs, processes: of the job.
        run: where it writes.
    """

    def __init__(self, specs: JobSpecs, processes: Processes, run: RunDirectory) -> None:
        self._specs = specs
        self._processes = processes
        self._run = run
        self._last: Written | None = None

    def write(self, status: Status) -> Written:
        """Write a full checkpoint of a job that stays at one step.

        A job at the step of its last checkpoint is what that holds: nothing is written again.

        Raises:
            ProcessLostError: a server or the coordinator is gone.
            TrainingError: it could not be written; what was there before is as it was.
        """
        last, at = self._last, (status.applied_step, self._run.recovery_epoch)
        if last is not None and (last.step, last.recovery_epoch) == at and last.is_there:
            return last
        path = self._run.checkpoint_path("full", status.applied_step)
        try:
            self._last = self._write(path, status)
        except ray.exceptions.RayTaskError as error:
            raise TrainingError(f"checkpoint {path} could not be written: {error.cause}") from error
        except (OSError, ValueError, ray.exceptions.RayError) as error:
            raise TrainingError(f"checkpoint {path} could not be written: {error}") from error
        return self._last

    def _write(self, path: Place, status: Status) -> Written:
        step = status.applied_step
        taken = time.time()
        seconds = seconds_to_move(self._num_bytes())
        partial = begin_checkpoint(path)
        try:
            cuts = self._written(
                self._processes.of_servers(
                    lambda handle: handle.write_checkpoint.remote(str(partial), step)
                ),
                seconds,
            )
            digest = _digest(self._specs.store, cuts)
            call = self._processes.coordinator.handle.cut_state.remote(step)
            state: CoordinatorState = answers_of(self._processes, {COORDINATOR: call})[COORDINATOR]
            manifest = manifest_of(
                self._specs,
                state,
                kind="full",
                recovery_epoch=self._run.recovery_epoch,
                run_id=self._run.run_id,
                files=[entry for cut in cuts for entry in cut.files],
                taken=taken,
                digest=digest,
                in_order=self._specs.store.routing.in_order,
            )
            self._run.check_held()
            write_manifest(partial, manifest)
            path = publish_checkpoint(partial, path)
        except BaseException:
            give_up_checkpoint(partial)
            raise
        return Written(path, step, self._run.recovery_epoch, digest, state.plan)

    def _written(self, calls: dict[Who, Any], seconds: float) -> list[ShardCut]:
        """Return what the servers have written; raises TimeoutError where one does not end."""
        _, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
        if late:
            raise TimeoutError(f"{len(late)} servers have not written it within {seconds:.0f} s")
        return list(answers_of(self._processes, calls).values())

    def _num_bytes(self) -> int:
        """Return about how much is to be written."""
        calls = self._processes.of_servers(lambda handle: handle.stats.remote())
        servers = answers_of(self._processes, calls).values()
        rows = sum(table.bytes for server in servers for table in server.tables.values())
        width = rule_for(self._specs.store.dense_optimizer, sparse=False)
        return int(rows) + 4 * width.row_width(self._specs.store.dense_size)
