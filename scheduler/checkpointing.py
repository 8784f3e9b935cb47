"""Write the model that the servers hold as a checkpoint."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from ps.checkpoint import (
    CheckpointError,
    CheckpointReader,
    Manifest,
    begin_checkpoint,
    publish_checkpoint,
    write_manifest,
)
from ps.digest import model_digest
from ps.server import ShardCut
from ps.spec import StoreSpec
from scheduler.coordinating import Status
from scheduler.errors import TrainingError
from scheduler.launching import Processes
from scheduler.reporting import versions
from scheduler.run_files import RunDirectory
from scheduler.start import time_to_json

if TYPE_CHECKING:
    from scheduler.trainer import JobSpecs


def _digest(store: StoreSpec, cuts: list[ShardCut]) -> str:
    """Return the model digest of what all servers have written."""
    tables = {
        table.name: np.concatenate([cut.tables[table.name] for cut in cuts])
        for table in store.tables
    }
    return model_digest(tables, [block for cut in cuts for block in cut.blocks])


def write_checkpoint(
    specs: "JobSpecs", processes: Processes, run: RunDirectory, status: Status
) -> tuple[str, str]:
    """Write a full checkpoint of a job that stays at one step.

    Returns:
        Its path, and the digest of the model.

    Raises:
        TrainingError: it could not be written; what was there before is as it was.
    """
    path = run.checkpoint_path("full", status.applied_step)
    try:
        return _write(specs, processes, run, status)
    except ray.exceptions.RayTaskError as error:
        raise TrainingError(f"checkpoint {path} could not be written: {error.cause}") from error
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        raise TrainingError(f"checkpoint {path} could not be written: {error}") from error


def _write(
    specs: "JobSpecs", processes: Processes, run: RunDirectory, status: Status
) -> tuple[str, str]:
    path = run.checkpoint_path("full", status.applied_step)
    partial = begin_checkpoint(path)
    try:
        step = status.applied_step
        cuts: list[ShardCut] = ray.get(
            [server.write_checkpoint.remote(str(partial), step) for server in processes.servers]
        )
        digest = _digest(specs.store, cuts)
        if _is_written(path, digest):
            shutil.rmtree(partial)
            return str(path), digest
        manifest = Manifest(
            kind="full",
            step=status.applied_step,
            recovery_epoch=specs.coordinator.recovery_epoch,
            store=specs.store.to_json(),
            model={
                "spec": asdict(specs.model),
                "features": asdict(specs.data.features),
                "contract": asdict(specs.contract),
            },
            job={
                "name": specs.config.name,
                "seed": specs.config.seed,
                "samples": status.samples["applied"],
                "mode": status.mode,
                "global_batch": specs.config.global_batch,
                "model_digest": digest,
                "versions": versions(),
            },
            files=tuple(entry for cut in cuts for entry in cut.files),
            time=time_to_json(
                specs.coordinator.start,
                ray.get(processes.coordinator.clock_state.remote()),
                step=status.applied_step,
                global_batch=specs.config.global_batch,
            ),
        )
        write_manifest(partial, manifest)
        path = publish_checkpoint(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return str(path), digest


def _is_written(path: Path, digest: str) -> bool:
    """Whether a checkpoint of the same model is there already, as of a job that was paused."""
    if not path.exists():
        return False
    try:
        return bool(CheckpointReader(path).manifest.job.get("model_digest") == digest)
    except CheckpointError:
        return False
