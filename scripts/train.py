"""Train a job: python scripts/train.py JOB.yaml [key.path=value ...]

Uses the Ray cluster that RAY_ADDRESS names, as inside `ray job submit`, else starts Ray here.
Prints one JSON line at the end. Exits 2 where the job can't be run as it is written, 1 where it
failed while running.
"""

import argparse
import signal
import sys
from typing import Any

from rich.console import Console

from ps.strict_json import json_text
from scheduler import ConfigError, JobConfig, RunDirectoryError, Trainer, TrainingError
from worker.metrics import auc_text
from worker.synthetic import best_auc_for


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train a job.", epilog="Every key of the job file can be overridden."
    )
    parser.add_argument("job", help="job file (YAML)")
    parser.add_argument("override", nargs="*", metavar="key.path=value")
    arguments = parser.parse_args()
    # A job that is stopped from outside ends like one that is interrupted: its actors end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = JobConfig.from_yaml(arguments.job, arguments.override)
        result = Trainer(config).fit()
    except (ConfigError, RunDirectoryError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: the job failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before the end; no checkpoint was written", file=sys.stderr)
        return 130
    best = best_auc_for(result.evaluated)
    _show(result.metrics, best, result.path)
    print(json_text(_summary(result.metrics, best, result.path)))
    return 0


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
    files = {"files_skipped": sum(map(len, metrics["skipped_files"].values()))}
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
    for what, files in metrics["skipped_files"].items():
        if files:
            console.print(
                f"left out {len(files):,} file{'s' if len(files) > 1 else ''} of data.{what} with"
                f" an unreadable footer, whose rows nobody can count: {files[0]}"
                + (", ..." if len(files) > 1 else "")
            )
    if metrics["eval"] is not None:
        scores = metrics["eval"]
        missing, missing_loss = scores["auc_missing"], scores["logloss_missing"]
        auc = scores["auc"]
        bound = scores["auc_error_bound"]
        shown = f"test AUC {auc_text(auc, bound)}" if missing is None else f"no test AUC: {missing}"
        loss = f"logloss {scores['logloss']:.4f}"
        line = f"{shown}, {loss if missing_loss is None else f'no finite logloss: {missing_loss}'}"
        if best is not None and missing is None:
            covered = (auc - 0.5) / (best - 0.5)
            line += f"; the best possible AUC is {best:.4f}, {covered:.1%} of the way from .5"
        console.print(line)
    console.print(f"files of this run: {path}")


if __name__ == "__main__":
    sys.exit(main())
