"""What a run writes about itself: a line of metrics an interval, and the result."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from embedding.table.tiered_values import TierFigures
from ps.server.figures import ServerFigures, TableFigures, added
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.progressive import WindowResult
from scheduler.coordinator.status import Status
from scheduler.job.config import JobConfig
from scheduler.run.interval_figures import (
    MOST_PROCESSES,
    HistogramOfInterval,
    NewKeysOfInterval,
    WorkersOfInterval,
    all_together,
    few,
    slowest,
)
from scheduler.run.recoveries import DrainNotice, RecoveryFigures, ServerMove
from worker.metrics import why_no_auc, why_no_log_loss

T = TypeVar("T")

_PACKAGES = ("synchromesh", "ray", "numpy", "numba", "pyarrow")


class IntervalReport:
    """Turns sums since the start into lines about an interval."""

    def __init__(self, config: JobConfig) -> None:
        first_order = config.embedding.first_order_optimizer
        self._optimizers = {
            "embedding": config.embedding.optimizer,
            **({} if first_order is None else {"embedding.first_order": first_order}),
            "model": config.model.optimizer,
            **{
                f"tables.{name}": table.optimizer
                for name, table in config.tables.items()
                if table.optimizer is not None
            },
        }
        self._last_time: float | None = None
        self._last_samples = 0
        self._last_loss = (0.0, 0)
        self._told: dict[str, int] = {}  # how many of what there are so far
        self._data_staleness = HistogramOfInterval()
        self._parameter_staleness = HistogramOfInterval()
        self._workers = WorkersOfInterval()
        self._new_keys = NewKeysOfInterval()

    def begin_at(self, state: CoordinatorState) -> None:
        """The job goes on from a state: what comes next is counted from there."""
        self._last_time = state.train_seconds
        self._last_samples = state.ledger.samples.applied
        self._last_loss = (state.loss_sum, state.loss_samples)
        self._told["shifts"] = len(state.modes.shifts)
        self._data_staleness.begin_at(dict(state.data_staleness))
        self._parameter_staleness.begin_at(dict(state.parameter_staleness))

    def line(
        self,
        status: Status,
        servers: Sequence[ServerFigures],
        recoveries: Sequence[RecoveryFigures] = (),
        scalings: Sequence[dict[str, Any]] = (),
        windows: Sequence[WindowResult] = (),
        drains: Sequence[DrainNotice] = (),
        server_moves: Sequence[ServerMove] = (),
        rebalancings: Sequence[dict[str, Any]] = (),
        load_skew: float | None = None,
        worker_restarts: int = 0,
        stream: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the metrics of the interval that ends now.

        Args:
            recoveries, drains, server_moves: all of the job so far.
            scalings, rebalancings: decisions that are new or better known.
            load_skew: load of the busiest server over the mean, where it is measured.
            windows: of a stream, those that were over in the interval.
            worker_restarts: workers that were replaced since the run began.
            stream: of a job on one, what waits there and what was left out.
        """
        recoveries = self._new("recoveries", recoveries)
        return {
            "time": time.time(),
            "train_seconds": status.train_seconds,
            "global_step": status.applied_step,
            "clock": status.clock,
            "mode": status.mode,
            "shifts": [asdict(shift) for shift in self._new("shifts", status.shifts)],
            "recoveries": [recovery.to_json() for recovery in recoveries],
            "scalings": list(scalings),
            "workers_wanted": status.num_workers,
            "drains": [asdict(notice) for notice in self._new("drains", drains)],
            "servers": status.num_servers,
            "server_moves": [asdict(move) for move in self._new("moves", server_moves)],
            "load_skew": load_skew,
            "rebalancings": list(rebalancings),
            "worker_restarts": worker_restarts,
            "predicted": None if status.prediction is None else asdict(status.prediction),
            "learning_rate": {
                name: optimizer.learning_rate_at(status.clock) * status.learning_rate_scale
                for name, optimizer in self._optimizers.items()
            },
            **self._of_samples(status),
            **_of_last_evaluation(status),
            "windows": [asdict(window) for window in windows],
            "stream": stream,
            "staleness": staleness(status),
            "staleness_of_interval": {
                "data": self._data_staleness.since_last(status.data_staleness.counts),
                "parameter": self._parameter_staleness.since_last(
                    status.parameter_staleness.counts
                ),
            },
            "batches": asdict(status.batches),
            **self._of_workers(status, len(servers)),
            "standbys": len(status.standbys),
            "shard_lag": few(list(status.shard_lag), max(status.shard_lag, default=0)),
            **self._of_tables(status, servers),
            **_of_processes(status, servers),
        }

    def _new(self, what: str, all_so_far: Sequence[T]) -> Sequence[T]:
        """Return those that no line has told of."""
        told, self._told[what] = self._told.get(what, 0), len(all_so_far)
        return all_so_far[told:]

    def _of_samples(self, status: Status) -> dict[str, Any]:
        """Return what became of samples so far, and rate and loss of the interval."""
        samples, now = status.samples.applied, status.train_seconds
        seconds = now - (self._last_time or 0.0)
        loss_sum = status.loss_sum - self._last_loss[0]
        loss_samples = status.loss_samples - self._last_loss[1]
        rate = (samples - self._last_samples) / seconds if seconds > 0 else None
        self._last_time, self._last_samples = now, samples
        self._last_loss = (status.loss_sum, status.loss_samples)
        return {
            "samples": samples,
            "applied_samples": status.applied_samples,
            "samples_dropped": status.samples.dropped,
            "samples_skipped": status.samples.skipped,
            "skipped_by_reason": status.samples.skipped_by_reason,
            "batches_dropped": status.batches.dropped,
            "batches_reissued": status.batches.reissued,
            "samples_per_second": rate,
            "train_loss": loss_sum / loss_samples if loss_samples else None,
        }

    def _of_workers(self, status: Status, servers: int) -> dict[str, Any]:
        workers = self._workers.since_last(status.workers)
        processes = {"worker": len(status.workers), "server": servers}
        return {
            "workers": {str(number): asdict(w) for number, w in slowest(workers).items()},
            "all_workers": all_together(workers),
            "together": {role: n for role, n in processes.items() if n > MOST_PROCESSES},
        }

    def _of_tables(self, status: Status, servers: Sequence[ServerFigures]) -> dict[str, Any]:
        tables = added(servers)
        return {
            "rows": {name: table.rows for name, table in tables.items()},
            "new_keys_per_sample": self._new_keys.since_last(status.applied_samples, tables),
            "table_bytes": {name: table.bytes for name, table in tables.items()},
            "non_finite": {name: table.non_finite for name, table in tables.items()},
            "dense_non_finite": sum(server.dense_non_finite for server in servers),
            **({"tiers": tiers} if (tiers := tier_figures(tables)) else {}),
        }


def _of_last_evaluation(status: Status) -> dict[str, Any]:
    evaluation = status.evaluations[-1] if status.evaluations else None
    return {
        "eval_auc": evaluation.auc if evaluation else None,
        "eval_auc_error_bound": evaluation.auc_error_bound if evaluation else None,
        "eval_logloss": evaluation.logloss if evaluation else None,
        "eval_step": evaluation.step if evaluation else None,
        **(_beside(evaluation, "eval_") if evaluation else {}),
    }


def _beside(evaluation: EvaluationResult, prefix: str = "") -> dict[str, Any]:
    """Return what some jobs' evaluations have besides: scores by group, and those of tasks."""
    found: dict[str, Any] = {}
    if evaluation.gauc is not None:
        found["gauc"] = evaluation.gauc
        found["gauc_groups"] = evaluation.gauc_groups
        found["gauc_samples"] = evaluation.gauc_samples
    if evaluation.tasks:
        found["tasks"] = {task.name: task.figures() for task in evaluation.tasks}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _of_processes(status: Status, servers: Sequence[ServerFigures]) -> dict[str, Any]:
    """Return memory, traffic and time of processes: of each, or of all where they are many."""
    peaks = {
        "worker": [w.process.peak_rss_bytes for w in status.workers.values()],
        "server": [server.process.peak_rss_bytes for server in servers],
        "coordinator": [status.peak_rss_bytes],
    }
    sent = [server.process.bytes_sent for server in servers]
    received = [server.process.bytes_received for server in servers]
    return {
        "peak_rss_bytes": {
            role: few(sizes, max(sizes, default=0)) for role, sizes in peaks.items()
        },
        "wire_bytes": {
            "pushed_and_pulled_by_workers": sum(
                w.process.bytes_sent + w.process.bytes_received for w in status.workers.values()
            ),
            "sent_by_servers": few(sent, sum(sent)),
            "received_by_servers": few(received, sum(received)),
        },
        "cpu_seconds": {
            role: few(seconds, sum(seconds))
            for role, seconds in cpu_seconds(status, servers).items()
        },
        "stage_seconds": {
            role: few(stages, _added(stages))
            for role, stages in stage_seconds(status, servers).items()
        },
    }


def evaluations(status: Status) -> list[dict[str, Any]]:
    """Return the scores of every evaluation, in their order."""
    return [
        {
            "step": e.step,
            "clock": e.clock,
            "auc": e.auc,
            "auc_error_bound": e.auc_error_bound,
            "logloss": e.logloss,
            **_beside(e),
        }
        for e in status.evaluations
    ]


def reached(status: Status) -> dict[str, Any]:
    """Return how far a job came, for one that does not come to its end."""
    return {
        "global_step": status.applied_step,
        "applied_samples": status.applied_samples,
        "samples": asdict(status.samples),
        "evaluations": evaluations(status),
    }


def staleness(status: Status) -> dict[str, dict[str, float]]:
    """Return both kinds of staleness, in steps."""
    return {
        "data": asdict(status.data_staleness.summary()),
        "parameter": asdict(status.parameter_staleness.summary()),
    }


def cpu_seconds(status: Status, servers: Sequence[ServerFigures]) -> dict[str, list[float]]:
    """Return the CPU time of each process since it was ready, by role."""
    return {
        "worker": [worker.process.cpu_seconds for worker in status.workers.values()],
        "server": [server.process.cpu_seconds for server in servers],
        "coordinator": [status.cpu_seconds],
    }


def stage_seconds(
    status: Status, servers: Sequence[ServerFigures]
) -> dict[str, list[dict[str, float]]]:
    """Return the time that each process spent in each stage since it was ready, by role."""
    return {
        "worker": [worker.process.stage_seconds for worker in status.workers.values()],
        "server": [server.process.stage_seconds for server in servers],
    }


def _added(stages: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums by stage."""
    sums: dict[str, float] = {}
    for process in stages:
        for stage, seconds in process.items():
            sums[stage] = sums.get(stage, 0.0) + seconds
    return sums


def _table_figures(servers: Sequence[ServerFigures]) -> dict[str, dict[str, int]]:
    """Return what result.json says of each table."""
    return {
        name: {
            "rows": table.rows,
            "admitted": table.rows,
            "unadmitted": table.unadmitted,
            "evicted": table.evicted,
            "non_finite": table.non_finite,
            "bytes": table.bytes,
            **({} if table.tiers is None else tiers_of_table(table.tiers)),
        }
        for name, table in added(servers).items()
    }


def tier_figures(tables: Mapping[str, TableFigures]) -> dict[str, dict[str, int]]:
    """Return where the values of tables with tiers are, by table."""
    return {
        name: tiers_of_table(table.tiers)
        for name, table in tables.items()
        if table.tiers is not None
    }


def tiers_of_table(tiers: TierFigures) -> dict[str, int]:
    """Return what metrics and results say of a table's tiers."""
    return {
        "memory_rows": tiers.memory_rows,
        "disk_rows": tiers.disk_rows,
        "memory_bytes": tiers.memory_bytes,
        "disk_bytes": tiers.disk_bytes,
        "memory_hits": tiers.hits,
        "cache_hits": tiers.cached,
        "disk_reads": tiers.reads,
        "disk_bytes_written": tiers.bytes_written,
        "prefetched": tiers.prefetched,
        "prefetched_lost": tiers.prefetched_lost,
    }


def make_result(
    *,
    config: JobConfig,
    status: Status,
    servers: Sequence[ServerFigures],
    model_digest: str,
    peak_rss_bytes: dict[str, int],
    processes: list[dict[str, Any]],
    worker_restarts: int,
    workers_moved: int,
    recoveries: Sequence[RecoveryFigures],
    scalings: Sequence[dict[str, Any]],
    drains: Sequence[DrainNotice],
    server_moves: Sequence[ServerMove],
    rebalancings: Sequence[dict[str, Any]],
    checkpoint: str,
    skipped_files: dict[str, list[str]],
    started_at: dict[str, float],
    lost_writes: dict[str, int],
    stream: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what result.json holds."""
    return {
        "name": config.name,
        "mode": config.training.mode,
        "samples_trained": status.samples.applied,
        "samples_dropped": status.samples.dropped,
        "samples_skipped": status.samples.skipped,
        "skipped_by_reason": status.samples.skipped_by_reason,
        "skipped_files": skipped_files,
        "stream": stream,
        "stopped": is_stopped(config, status),
        "epochs": config.data.epochs,
        "global_step": status.applied_step,
        "started_at": started_at,
        "lost_writes": lost_writes,
        **_rate_and_loss(status),
        "eval": _last_evaluation(status),
        "evaluations": evaluations(status),
        "mode_history": mode_history(status),
        "staleness": staleness(status),
        "dropped_contributions": status.batches.dropped,
        "reissued_batches": status.batches.reissued,
        "dense_non_finite": sum(s.dense_non_finite for s in servers),
        "gradients_of_evicted_keys": sum(s.gradients_of_evicted_keys for s in servers),
        "ledger": asdict(status.batches),
        "worker_restarts": worker_restarts,
        "workers_moved": workers_moved,
        "recoveries": [recovery.to_json() for recovery in recoveries],
        "scalings": list(scalings),
        "drains": [asdict(notice) for notice in drains],
        "server_moves": [asdict(move) for move in server_moves],
        "rebalancings": list(rebalancings),
        **_recovered(recoveries),
        "standbys": list(status.standbys),
        "workers": {
            str(number): {
                "batches": worker.batches,
                "samples": worker.samples,
                "seconds": worker.seconds,
            }
            for number, worker in sorted(status.workers.items())
        },
        "tables": _table_figures(servers),
        "model_digest": model_digest,
        "peak_rss_bytes": peak_rss_bytes,
        "cpu_seconds": cpu_seconds(status, servers),
        "stage_seconds": stage_seconds(status, servers),
        "wire_bytes": {
            f"server-{i}": {"sent": s.process.bytes_sent, "received": s.process.bytes_received}
            for i, s in enumerate(servers)
        },
        "processes": processes,
        "checkpoint": checkpoint,
        "versions": versions(),
        "seed": config.seed,
    }


def _rate_and_loss(status: Status) -> dict[str, Any]:
    seconds = status.train_seconds
    return {
        "train_seconds": seconds,
        "samples_per_second": status.samples.applied / seconds if seconds > 0 else 0.0,
        "train_loss": status.loss_sum / status.loss_samples if status.loss_samples else None,
    }


def _last_evaluation(status: Status) -> dict[str, Any] | None:
    if not status.evaluations:
        return None
    last = status.evaluations[-1]
    return {
        "auc": last.auc,
        "auc_missing": why_no_auc(last.auc, last.samples),
        "auc_error_bound": last.auc_error_bound,
        "logloss": last.logloss,
        "logloss_missing": why_no_log_loss(last.logloss),
        "samples": last.samples,
        "samples_skipped": last.samples_skipped,
        **_beside(last),
    }


def _recovered(recoveries: Sequence[RecoveryFigures]) -> dict[str, Any]:
    """Return what all recoveries came to."""
    return {
        "recovery_seconds": sum(recovery.seconds for recovery in recoveries),
        "redone_steps": sum(recovery.redone_steps for recovery in recoveries),
        "redone_samples": sum(recovery.redone_samples for recovery in recoveries),
        "promotions": sum(len(recovery.promoted) for recovery in recoveries),
    }


def is_stopped(config: JobConfig, status: Status) -> bool:
    """Whether somebody has ended a job, before its data or its time did."""
    limit = config.training.max_seconds
    return status.limit is not None and (limit is None or status.train_seconds < limit)


def mode_history(status: Status) -> list[dict[str, Any]]:
    """Return every mode that the job was in: why, and how fast it was in it."""
    first = status.shifts[0].from_mode if status.shifts else status.mode
    history: list[dict[str, Any]] = [
        {"mode": first, "from_step": status.first_step, "cause": "job"}
    ]
    begins = [(0, 0.0)]
    for shift in status.shifts:
        history.append(
            {
                "mode": shift.to_mode,
                "from_step": shift.step,
                "cause": shift.cause,
                "reason": shift.reason,
                "reissued_batches": shift.reissued,
                "seconds_to_next_step": shift.seconds_to_next_step,
                "predicted_sync_samples_per_second": shift.sync_rate,
                "predicted_gba_samples_per_second": shift.gba_rate,
            }
        )
        begins.append((shift.samples, shift.seconds))
    ends = [*begins[1:], (status.samples.applied, status.train_seconds)]
    for entry, (samples, seconds), (end_samples, end) in zip(history, begins, ends, strict=True):
        # The last step was applied before a shift that none came after.
        entry["seconds"] = max(0.0, end - seconds)
        entry["samples"] = end_samples - samples
        rate = entry["samples"] / entry["seconds"] if end > seconds else None
        entry["samples_per_second"] = rate
    return history


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[name] = "not installed"
    return found
