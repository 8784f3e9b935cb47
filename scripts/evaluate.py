"""Score a checkpoint: python scripts/evaluate.py CHECKPOINT_OR_RUN [JOB.yaml]

Prints one JSON line with the AUC, the logloss and what they are of. The samples are those of
data.eval in JOB.yaml, else in the job.yaml of the run that wrote the checkpoint. Exits 2 where the
checkpoint or the samples can't be used, 1 where scoring failed.
"""

import argparse
import os
import signal
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ps.checkpoint import CheckpointError, CheckpointReader
from ps.storage import StorageError
from ps.strict_json import json_text
from scheduler import ConfigError, JobConfig, RunDirectoryError
from scheduler.paths import with_absolute_paths
from scheduler.resolve import evaluation_data
from scheduler.run_files import JOB_FILE, latest_checkpoint
from worker.contract import check_contract
from worker.errors import DataError
from worker.inference import ModelError, Predictor, saved_model
from worker.metrics import why_no_auc, why_no_log_loss
from worker.planning import make_plan
from worker.spec import DataSpec, FeatureSpec
from worker.synthetic import best_auc_for

BAD_INPUT = (CheckpointError, ConfigError, DataError, ModelError, RunDirectoryError, StorageError)
# Of a checkpoint without a job: what data.eval_batch_size is by default.
BATCH_SIZE = 8192


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score a checkpoint on labelled samples; prints one JSON line.",
        epilog="A job's data.label and data.eval_batch_size may differ from training's, its"
        " features may not. Scores are those of training bit for bit where data.eval_batch_size"
        " and cluster.worker_threads are.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT_OR_RUN", help="a run: its newest one")
    parser.add_argument(
        "job",
        nargs="*",
        metavar="JOB.yaml | key.path=value",
        help="job file whose data.eval is read (default: the run's own), and overrides of its keys",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="what to read in place of data.eval",
    )
    args = parser.parse_intermixed_args(argv)
    named = bool(args.job) and "=" not in args.job[0]
    args.job_file = args.job[0] if named else None
    args.overrides = args.job[named:]
    wrong = [text for text in args.overrides if "=" not in text]
    if wrong:
        parser.error(f"an override must look like key.path=value, got {wrong[0]!r}")
    return args


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    checkpoint = latest_checkpoint(args.checkpoint)
    saved = saved_model(CheckpointReader(checkpoint))
    features = saved.features
    config = load_job(args, checkpoint)
    if config is None:
        data, threads, patterns = DataSpec(features=features, batch_size=BATCH_SIZE), 1, args.data
    else:
        data, threads = evaluation_data(config), config.cluster.worker_threads
        patterns = args.data or config.data.eval
        check_features(data.features, features)
    if patterns is None:
        raise ConfigError("the job has no data.eval; set it, or name files with --data")
    plan = make_plan(patterns, data)
    check_contract(data.features, plan.kinds, saved.contract, str(checkpoint))
    predictor = Predictor.from_checkpoint(checkpoint, threads=threads)
    scores = predictor.evaluate(plan, data)
    best = best_auc_for([file.path for file in plan.files])
    return {
        **scores,
        "auc_missing": why_no_auc(scores["auc"], scores["samples"]),
        "logloss_missing": why_no_log_loss(scores["logloss"]),
        "files_skipped": len(plan.skipped_files),
        **({} if best is None else {"best_auc": best}),
        "checkpoint": str(checkpoint),
        "step": predictor.step,
    }


def load_job(args: argparse.Namespace, checkpoint: Path) -> JobConfig | None:
    """Read the job that was named, else that of the run which the checkpoint lies in.

    None where there is neither and `--data` says all that is needed.
    """
    path = Path(args.job_file) if args.job_file else checkpoint.resolve().parents[1] / JOB_FILE
    if args.job_file is None and not path.exists():
        if args.data and not args.overrides:
            return None
        raise ConfigError(
            f"{checkpoint} does not lie in a run directory with a {JOB_FILE}; name a job file, or"
            " files with --data"
        )
    return with_absolute_paths(JobConfig.from_yaml(path, args.overrides), os.environ, Path.cwd())


def check_features(found: FeatureSpec, expected: FeatureSpec) -> None:
    """Refuse a job that would feed the model other features than it was trained on."""
    if replace(found, label=None) == replace(expected, label=None):
        return
    for name in ("dense_transform", "dense", "sparse"):
        got, wanted = getattr(found, name), getattr(expected, name)
        if isinstance(got, str):
            got, wanted = [got], [wanted]
        for g, w in zip_longest(got, wanted):
            if g != w:
                raise ConfigError(
                    f"data.{name} is not what the checkpoint was trained on: got {g}, expected {w}."
                    " Correct the job file, or leave it out and name files with --data"
                )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        line = evaluate(args)
    except BAD_INPUT as error:
        print(f"evaluate: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except (OSError, ValueError, MemoryError) as error:
        print(f"evaluate: failed: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted", file=sys.stderr)
        return 130
    print(json_text(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
