"""Write the model that the servers hold as a checkpoint."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from embedding.mixing import NUM_BUCKETS
from ps.checkpoint import (
    CheckpointError,
    CheckpointReader,
    FileEntry,
    Manifest,
    begin_checkpoint,
    publish_checkpoint,
    write_manifest,
)
from ps.digest import DIGEST_BYTES, model_digest
from ps.spec import StoreSpec, bucket_range
from scheduler.coordinating import Status
from scheduler.errors import TrainingError
from scheduler.launching import Processes
from scheduler.reporting import versions
from scheduler.run_files import RunDirectory
from scheduler.start import time_to_json

if TYPE_CHECKING:
    from scheduler.trainer import JobSpecs


def _digest(store: StoreSpec, processes: Processes) -> str:
    """Return the model digest of what all servers hold."""
    tables = {table.name: np.empty((NUM_BUCKETS, DIGEST_BYTES), np.uint8) for table in store.tables}
    blocks: list[bytes] = []
    digests = ray.get([server.digests.remote() for server in processes.servers])
    for shard, (of_tables, of_blocks) in enumerate(digests):
        part = slice(*bucket_range(shard, store.num_shards))
        for name, values in of_tables.items():
            tables[name][part] = values
        blocks += of_blocks
    return model_digest(tables, blocks)


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
    digest = _digest(specs.store, processes)
    path = run.checkpoint_path("full", status.applied_step)
    if _is_written(path, digest):
        return str(path), digest
    partial = begin_checkpoint(path)
    try:
        written: list[list[FileEntry]] = ray.get(
            [server.write_checkpoint.remote(str(partial)) for server in processes.servers]
        )
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
            files=tuple(entry for entries in written for entry in entries),
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
