"""What the manifest of a job's checkpoint says."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Literal

from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.manifest import Manifest, Parent
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.start import time_to_json
from scheduler.driver.resolved import JobSpecs
from scheduler.run.metrics import versions


def manifest_of(
    specs: JobSpecs,
    state: CoordinatorState,
    *,
    kind: Literal["full", "delta"],
    recovery_epoch: int,
    run_id: str,
    files: Iterable[FileEntry],
    taken: float,
    parent: Parent | None = None,
    digest: str | None = None,
    in_order: bool = True,
) -> Manifest:
    """Return the manifest of a checkpoint.

    Args:
        state: of the coordinator at its step.
        run_id: of the run.
        files: that the servers have written.
        taken: when the job was at that step, in seconds since 1970.
        parent: of a delta.
        digest: of the model, where it was computed.
        in_order: whether rows lie by bucket and key.
    """
    job = {
        "name": specs.config.name,
        "run": run_id,
        "seed": specs.config.seed,
        "samples": state.ledger.samples.applied,
        "mode": state.modes.mode,
        "global_batch": specs.config.global_batch,
        "taken": taken,
        "versions": versions(),
    }
    if digest is not None:
        job["model_digest"] = digest
    return Manifest(
        kind=kind,
        step=state.step,
        recovery_epoch=recovery_epoch,
        store=specs.store.to_json(),
        model={
            "spec": asdict(specs.model),
            # A model is the same however its samples are scored.
            "features": asdict(replace(specs.data.features, segment=None)),
            "contract": asdict(specs.contract),
        },
        job=job,
        files=tuple(files),
        time=time_to_json(
            state.start, state.clock, step=state.step, global_batch=specs.config.global_batch
        ),
        parent=parent,
        training=state.to_json(),
        sorted=in_order,
    )
