"""`synchromesh train`: a job from its file to its result."""

import math
from typing import Any

import click
from rich.console import Console

from scheduler import ConfigError, JobConfig, RunDirectoryError, TrainingError
from synchromesh.commands.answers import answering, json_option, print_json
from worker.datasets.synthetic import best_auc_for
from worker.metrics import auc_text, why_no_auc, why_no_log_loss


@click.command(
    epilog="Example: synchromesh train jobs/dlrm.yaml training.mode=sync embedding.dim=32"
)
@click.argument("job", type=click.Path(), metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[key.path=value]...")
@json_option
def command(job: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train a job; every key of its file can be overridden.

    Uses the Ray cluster that RAY_ADDRESS names, as inside `ray job submit`, else starts Ray here.
    Prints one line of JSON at the end.
    """
    from scheduler.driver.trainer import Trainer  # and with it Ray

    with answering(
        ConfigError,
        RunDirectoryError,
        ValueError,
        OSError,
        failures=(TrainingError,),
        failed="the job failed: ",
        interrupted="stopped before the end",
    ):
        config = JobConfig.from_yaml(job, list(overrides))
        result = Trainer(config).fit()
    best = best_auc_for(result.evaluated, config.data.label_columns[0])
    if not as_json:
        _show(result.metrics, best, result.path)
    print_json(_summary(result.metrics, best, result.path))


def _summary(metrics: dict[str, Any], best: float | None, path: str) -> dict[str, Any]:
    keys = (
        "name",
        "samples_trained",
        "samples_dropped",
        "samples_skipped",
        "global_step",
        "samples_per_second",
        "eval",
        "model_digest",
    )
    of_stream = (metrics.get("stream") or {}).get("files_skipped", 0)
    files = {"files_skipped": of_stream + sum(map(len, metrics["skipped_files"].values()))}
    return {**{key: metrics[key] for key in keys}, **files, "best_auc": best, "run": path}


def _show(metrics: dict[str, Any], best: float | None, path: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    seconds = metrics["train_seconds"]
    console.print(
        f"trained {metrics['samples_trained']:,} samples in {seconds:.1f} s:"
        f" {metrics['samples_per_second']:,.0f} samples/s"
    )
    if metrics["samples_dropped"]:
        console.print(f"dropped {metrics['samples_dropped']:,} samples: their gradients were stale")
    for reason, count in metrics["skipped_by_reason"].items():
        console.print(f"skipped {count:,} samples: {reason}")
    rows = sum(table["non_finite"] for table in metrics["tables"].values())
    blocks = metrics["dense_non_finite"]
    if rows or blocks:
        console.print(
            f"left out {rows:,} updates of rows and {blocks:,} of dense blocks: the sums of their"
            " gradients are not finite"
        )
    for what, files in metrics["skipped_files"].items():
        if files:
            console.print(
                f"left out {len(files):,} file{'s' if len(files) > 1 else ''} of data.{what} with"
                f" an unreadable footer, whose rows nobody can count: {files[0]}"
                + (", ..." if len(files) > 1 else "")
            )
    stream = metrics.get("stream") or {}
    if stream.get("files_skipped") or stream.get("rows_skipped"):
        first = ", ".join(stream["first_skipped"][:1])
        console.print(
            f"left out {stream['files_skipped']:,} files and {stream['rows_skipped']:,} rows of"
            f" data.stream that can't be used" + (f": {first}, ..." if first else "")
        )
    if metrics["eval"] is not None:
        scores = metrics["eval"]
        missing, missing_loss = scores["auc_missing"], scores["logloss_missing"]
        auc = scores["auc"]
        bound = scores["auc_error_bound"]
        name = " of ".join(["test AUC", *[*scores.get("tasks", ())][:1]])
        shown = f"{name} {auc_text(auc, bound)}" if missing is None else f"no {name}: {missing}"
        loss = f"logloss {scores['logloss']:.4f}"
        line = f"{shown}, {loss if missing_loss is None else f'no finite logloss: {missing_loss}'}"
        if best is not None and missing is None:
            covered = (auc - 0.5) / (best - 0.5)
            line += f"; the best possible AUC is {best:.4f}, {covered:.1%} of the way from .5"
        if scores.get("gauc") is not None:
            line += f"; GAUC {scores['gauc']:.4f} of {scores['gauc_groups']:,} groups"
        console.print(line)
        for name, its in scores.get("tasks", {}).items():
            console.print(f"  {name}: {_task(its)}")
    console.print(f"files of this run: {path}")


def _task(scores: dict[str, Any]) -> str:
    """Say what a task came to: its AUC may not be there, as for all tasks."""
    auc, loss = (math.nan if (v := scores[name]) is None else v for name in ("auc", "logloss"))
    missing, missing_loss = why_no_auc(auc, scores["samples"]), why_no_log_loss(loss)
    shown = auc_text(auc, scores["auc_error_bound"])
    parts = [
        f"AUC {shown}" if missing is None else f"no AUC: {missing}",
        f"logloss {loss:.4f}" if missing_loss is None else f"no finite logloss: {missing_loss}",
        f"{scores['samples']:,} samples",
    ]
    if scores.get("gauc") is not None:
        parts.append(f"GAUC {scores['gauc']:.4f} of {scores['gauc_groups']:,} groups")
    return ", ".join(parts)
