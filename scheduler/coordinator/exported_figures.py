"""The coordinator's figures, its workers' among them, as metrics."""

from dataclasses import asdict

from runtime.metrics_export import Figure
from scheduler.coordinator.modes.rules import MODES
from scheduler.coordinator.progressive import WINDOW_SCORES
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import Status
from scheduler.scaling.decisions import ScalingView


def coordinator_figures(status: Status) -> list[Figure]:
    """Return what the coordinator knows of the job, of its workers and of its shards.

    Means over any interval are quotients of counters: the training loss is
    `train_loss / train_loss_samples`, a worker's batch time
    `batch_seconds / batches_computed`.
    """
    figures = [
        _gauge("global_step", status.applied_step),
        _gauge("clock", status.clock),
        _gauge("peak_rss_bytes", status.peak_rss_bytes),
        _counter("train_loss", status.loss_sum),
        _counter("train_loss_samples", status.loss_samples),
    ]
    up = sum(not worker.lost for worker in status.workers.values())
    figures += [_gauge("workers_wanted", status.num_workers), _gauge("workers_up", up)]
    if status.scaling is not None:
        figures += _scaling_figures(status.scaling)
    for mode in MODES:
        figures.append(_gauge("mode", float(mode == status.mode), mode=mode))
    if status.last_evaluation is not None:
        figures.append(_gauge("eval_auc", status.last_evaluation.auc))
        if status.last_evaluation.gauc is not None:
            figures.append(_gauge("eval_gauc", status.last_evaluation.gauc))
        for task in status.last_evaluation.tasks:
            figures.append(_gauge("eval_task_auc", task.auc, task=task.name))
    if status.last_window is not None:
        for score in WINDOW_SCORES:
            value = getattr(status.last_window, score)
            figures.append(_gauge("window_score", value, score=score))
            for its in status.last_window.tasks:
                value = getattr(its, score)
                figures.append(_gauge("window_task_score", value, score=score, task=its.name))
    samples = status.samples
    for outcome, count in (
        ("applied", samples.applied),
        ("dropped", samples.dropped),
        ("skipped", samples.skipped),
    ):
        figures.append(_counter("samples", count, outcome=outcome))
    for event, count in asdict(status.batches).items():
        figures.append(_counter("batches", count, event=event))
    staleness = {"data": status.data_staleness, "parameter": status.parameter_staleness}
    for kind, histogram in staleness.items():
        for statistic, steps in asdict(histogram.summary()).items():
            figures.append(_gauge("staleness_steps", steps, kind=kind, statistic=statistic))
    for shard, lag in enumerate(status.shard_lag):
        figures.append(Figure("shard_lag_steps", lag, "server", shard))
    for number, worker in status.workers.items():
        figures += _worker_figures(number, worker)
    return figures


def _scaling_figures(view: ScalingView) -> list[Figure]:
    servers = view.servers if view.last_of_servers is None else view.last_of_servers.after
    figures = [_gauge("servers_wanted", servers)]
    for role, cause, count in view.counts:
        figures.append(_counter("scaling_decisions", count, target=role, cause=cause))
    if view.last is not None:
        for kind in ("rate", "predicted", "realised"):
            value = getattr(view.last, kind)
            if value is not None:
                kind = "before" if kind == "rate" else kind
                figures.append(_gauge("scaling_samples_per_second", value, kind=kind))
    if (last := view.last_of_servers) is not None:
        shares = {"before": last.share, "predicted": last.predicted, "realised": last.realised}
        for kind, share in shares.items():
            if share is not None:
                figures.append(_gauge("scaling_server_share", share, kind=kind, cause=last.cause))
    return figures


def _worker_figures(number: int, worker: WorkerFigures) -> list[Figure]:
    counters = {
        "batches_computed": worker.batches,
        "samples_computed": worker.samples,
        "batch_seconds": worker.seconds,
        "bytes_sent": worker.process.bytes_sent,
        "bytes_received": worker.process.bytes_received,
    }
    return [
        Figure("peak_rss_bytes", worker.process.peak_rss_bytes, "worker", number),
        Figure("worker_lost", float(worker.lost), "worker", number),
        *(Figure(name, value, "worker", number, "counter") for name, value in counters.items()),
    ]


def _gauge(name: str, value: float, **labels: str) -> Figure:
    return Figure(name, value, "coordinator", 0, labels=labels)


def _counter(name: str, value: float, **labels: str) -> Figure:
    return Figure(name, value, "coordinator", 0, "counter", labels)
