"""The end of a job: final checkpoint, digest, evaluation, result."""

from typing import Any

from scheduler.coordinator.ledger_state import Samples
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.full_disk import once_there_is_room
from scheduler.driver.processes import Processes
from scheduler.driver.resolved import JobSpecs
from scheduler.driver.stream_feed import StreamFeed
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import TrainingError
from scheduler.run.directory import RunDirectory
from scheduler.run.metrics import make_result
from scheduler.views.progress import Progress


def finish(
    specs: JobSpecs,
    processes: Processes,
    supervisor: Supervisor,
    run: RunDirectory,
    writer: CheckpointWriter,
    progress: Progress,
    *,
    feed: StreamFeed | None,
    started_at: dict[str, float],
) -> dict[str, Any]:
    """Write the final checkpoint, evaluate, and write the result; return it.

    Raises:
        TrainingError: nothing was trained.
    """
    status = supervisor.status()
    check_trained(status.samples)
    waiting: dict[str, Any] = {
        "seconds": specs.config.cluster.start_timeout_seconds,
        "note": progress.note,
    }
    progress.phase("writing the final checkpoint")
    trained = status
    written = once_there_is_room(
        lambda: writer.write(trained), meanwhile=supervisor.poll, **waiting
    )
    if feed is not None:
        feed.cut_written(written.plan)
    if specs.evaluation_plan is not None:
        progress.phase("evaluating")
        supervisor.tell_coordinator(processes.coordinator.handle.evaluate.remote())
        status = supervisor.until_evaluated()
    supervisor.tell_coordinator(processes.coordinator.handle.stop_workers.remote())
    result = make_result(
        config=specs.config,
        status=status,
        servers=supervisor.server_stats(),
        model_digest=written.digest,
        peak_rss_bytes=supervisor.peak_rss,
        processes=_describe(processes),
        worker_restarts=supervisor.worker_restarts,
        workers_moved=supervisor.workforce.moved,
        recoveries=[*supervisor.recoveries.before, *supervisor.recoveries.done],
        scalings=supervisor.autoscaler.history.all(),
        drains=supervisor.moves.notices,
        server_moves=supervisor.resizing.done,
        rebalancings=supervisor.rebalancer.all(),
        checkpoint=str(written.path),
        skipped_files={
            "train": list(specs.plan.skipped_files),
            "eval": list(specs.evaluation_plan.skipped_files if specs.evaluation_plan else ()),
        },
        started_at=started_at,
        lost_writes=run.losses.counts,
        stream=None if feed is None else feed.figures,
    )
    once_there_is_room(lambda: run.write_result(result), **waiting)
    return result


_REMEDIES = {
    "bad_file": "run with data.on_bad_file=fail, which names the first file that can't be read",
    "non_finite": "lower the learning rate, or check the dense columns for huge values",
}


def check_trained(samples: Samples) -> None:
    """Refuse the end of a job that has done nothing but skip; its model is as it was before.

    Raises:
        TrainingError: there were samples, and all were skipped.
    """
    if samples.applied or samples.dropped or not samples.skipped:
        return
    reasons = samples.skipped_by_reason
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    remedies = "; ".join(_REMEDIES[reason] for reason in reasons)
    raise TrainingError(
        f"nothing was trained: all {samples.skipped:,} samples were skipped ({counts}). To train"
        f" them, {remedies}"
    )


def _describe(processes: Processes) -> list[dict[str, Any]]:
    """Return role and number of each process, where it runs and the digest of its fingerprint."""
    found = [
        (role, index, facts["pid"], facts["node"], facts["fingerprint"]["digest"])
        for role, index, facts in (
            *(("server", index, server.facts) for index, server in enumerate(processes.servers)),
            ("coordinator", 0, processes.coordinator.facts),
        )
    ]
    found += [("worker", w.index, w.pid, w.node, w.fingerprint) for w in processes.workers.values()]
    names = ("role", "index", "pid", "node", "fingerprint")
    return [dict(zip(names, values, strict=True)) for values in found]
