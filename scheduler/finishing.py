"""The end of a job: final checkpoint, digest, evaluation, result."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from embedding.mixing import NUM_BUCKETS
from ps.checkpoint import FileEntry, Manifest, write_manifest
from ps.digest import DIGEST_BYTES, model_digest
from ps.spec import StoreSpec, bucket_range
from scheduler.coordinating import Status
from scheduler.errors import TrainingError
from scheduler.launching import Processes
from scheduler.progress import Progress
from scheduler.reporting import make_result, versions
from scheduler.run_files import RunDirectory
from scheduler.supervising import Supervisor

if TYPE_CHECKING:
    from scheduler.trainer import JobSpecs


def finish(
    specs: "JobSpecs",
    processes: Processes,
    supervisor: Supervisor,
    run: RunDirectory,
    progress: Progress,
) -> tuple[dict[str, Any], str]:
    """Write the final checkpoint, evaluate, and write the result; return it and the checkpoint."""
    status = supervisor.status()
    progress.phase("writing the final checkpoint")
    digest = _digest(specs.store, processes)
    checkpoint = _write_checkpoint(specs, processes, run, status, digest)
    if specs.evaluation_plan is not None:
        progress.phase("evaluating")
        ray.get(processes.coordinator.evaluate.remote())
        status = supervisor.until_evaluated()
    ray.get(processes.coordinator.stop_workers.remote())
    result = make_result(
        config=specs.config,
        status=status,
        servers=supervisor.server_stats(),
        model_digest=digest,
        peak_rss_bytes=supervisor.peak_rss,
        processes=_describe(processes),
        worker_restarts=supervisor.worker_restarts,
        checkpoint=checkpoint,
    )
    run.write_result(result)
    return result, checkpoint


def _digest(store: StoreSpec, processes: Processes) -> str:
    tables = {table.name: np.empty((NUM_BUCKETS, DIGEST_BYTES), np.uint8) for table in store.tables}
    blocks: list[bytes] = []
    digests = ray.get([server.digests.remote() for server in processes.servers])
    for shard, (of_tables, of_blocks) in enumerate(digests):
        part = slice(*bucket_range(shard, store.num_shards))
        for name, values in of_tables.items():
            tables[name][part] = values
        blocks += of_blocks
    return model_digest(tables, blocks)


def _write_checkpoint(
    specs: "JobSpecs", processes: Processes, run: RunDirectory, status: Status, digest: str
) -> str:
    path = run.checkpoint_path("full", status.applied_step)
    try:
        written: list[list[FileEntry]] = ray.get(
            [server.write_checkpoint.remote(str(path)) for server in processes.servers]
        )
        manifest = Manifest(
            kind="full",
            step=status.applied_step,
            recovery_epoch=specs.coordinator.recovery_epoch,
            store=specs.store.to_json(),
            model={"spec": asdict(specs.model), "features": asdict(specs.data.features)},
            job={
                "name": specs.config.name,
                "seed": specs.config.seed,
                "samples": status.samples["applied"],
                "mode": specs.config.training.mode,
                "global_batch": specs.config.global_batch,
                "model_digest": digest,
                "versions": versions(),
            },
            files=tuple(entry for entries in written for entry in entries),
        )
        write_manifest(path, manifest)
    except ray.exceptions.RayTaskError as error:
        raise TrainingError(f"checkpoint {path} could not be written: {error.cause}") from error
    except OSError as error:
        raise TrainingError(f"checkpoint {path} could not be written: {error}") from error
    return str(path)


def _describe(processes: Processes) -> list[dict[str, Any]]:
    found = [
        {"role": "server", "index": i, "pid": facts["pid"], "node": facts["node"]}
        for i, facts in enumerate(processes.server_facts)
    ]
    found.append({"role": "coordinator", "index": 0, **processes.coordinator_facts})
    found += [
        {"role": "worker", "index": w.index, "pid": w.pid, "node": w.node}
        for w in processes.workers.values()
    ]
    return found
