"""Score a checkpoint on labelled samples."""

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ps.checkpoint.read import CheckpointReader
from runtime.places import Place, place_of
from runtime.storage import StorageError
from scheduler import ConfigError, JobConfig, RunDirectoryError
from scheduler.job.paths import with_absolute_paths
from scheduler.job.specs import evaluation_data
from scheduler.run.directory import JOB_FILE, latest_checkpoint
from worker.contract import check_contract
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.datasets.synthetic import best_auc_for
from worker.errors import DataError
from worker.grouped_auc import check_grouped
from worker.inference import ModelError, Predictor, saved_model
from worker.metrics import why_no_auc, why_no_log_loss
from worker.spec import DataSpec, FeatureSpec

BAD_INPUT = (ConfigError, DataError, ModelError, RunDirectoryError, StorageError)
# Of a checkpoint without a job: what data.eval_batch_size is by default.
BATCH_SIZE = 8192


def evaluate(
    checkpoint_or_run: str | Path,
    *,
    job: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on labelled samples.

    Args:
        checkpoint_or_run: a checkpoint, or a run directory: its newest one.
        job: job file whose data.eval is read; None: that of the run which wrote the checkpoint.
        overrides: `key.path=value` over keys of the job.
        data: files, folders, globs, URLs or tables that are read in place of data.eval.

    Returns:
        `auc` and `logloss` with their bounds (None where they are undefined, with
        `auc_missing` or `logloss_missing` saying why), `samples` and more figures of the scores,
        `files_skipped`, `best_auc` where the data say it, `checkpoint` and `step`.

    Raises:
        CheckpointError, RunDirectoryError, ConfigError, DataError: what was named can't be used.
    """
    checkpoint = latest_checkpoint(str(checkpoint_or_run))
    plan, spec, threads = _plan_of(checkpoint_or_run, checkpoint, job, overrides, data)
    predictor = Predictor.from_checkpoint(checkpoint, threads=threads)
    scores = predictor.evaluate(plan, spec)
    best = best_auc_for([file.path for file in plan.files], spec.features.label_columns[0])
    return {
        **scores,
        "auc_missing": why_no_auc(scores["auc"], scores["samples"]),
        "logloss_missing": why_no_log_loss(scores["logloss"]),
        "files_skipped": len(plan.skipped_files),
        **({} if best is None else {"best_auc": best}),
        "checkpoint": str(checkpoint),
        "step": predictor.step,
    }


def evaluation_of(
    checkpoint_or_run: str | Path, checkpoint: Place, *, data: Sequence[str] | None = None
) -> tuple[Plan, DataSpec]:
    """Return the plan of a checkpoint's labelled data, and how they are read.

    Args:
        checkpoint_or_run: by which the job is found.
        checkpoint: whose features are read.
        data: files, folders, globs, URLs or tables; None: data.eval of the job.

    Raises:
        CheckpointError, ConfigError, DataError: what was named can't be used.
    """
    plan, spec, _ = _plan_of(checkpoint_or_run, checkpoint, None, (), data)
    return plan, spec


def _plan_of(
    checkpoint_or_run: str | Path,
    checkpoint: Place,
    job: str | Path | None,
    overrides: Sequence[str],
    data: Sequence[str] | None,
) -> tuple[Plan, DataSpec, int]:
    data_named = list(data) if data else None
    saved = saved_model(CheckpointReader(checkpoint))
    features = saved.features
    config = _job_of(checkpoint_or_run, checkpoint, job, overrides, data)
    if config is None:
        spec, threads, patterns = DataSpec(features=features, batch_size=BATCH_SIZE), 1, data_named
    else:
        spec, threads = evaluation_data(config), config.cluster.worker_threads
        patterns = data_named or config.data.eval
        _check_features(spec.features, features)
        _check_tasks(spec.features, saved.spec.tasks)
    if patterns is None:
        raise ConfigError("the job has no data.eval; set it, or name files with --data")
    plan = make_plan(patterns, spec)
    if spec.features.group is not None:
        try:
            check_grouped(plan.rows_per_epoch, len(saved.spec.tasks))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    check_contract(spec.features, plan.kinds, saved.contract, str(checkpoint))
    return plan, spec, threads


def _job_of(
    named: str | Path,
    checkpoint: Place,
    job: str | Path | None,
    overrides: Sequence[str],
    data: Sequence[str] | None,
) -> JobConfig | None:
    """Read the job that was named, else that of the run that was, or that the checkpoint lies in.

    None where there is neither and `data` says all that is needed.
    """
    path = Path(job) if job else _job_file(place_of(str(named)), checkpoint)
    if path is None:
        if data and not overrides:
            return None
        raise ConfigError(
            f"{checkpoint} does not lie in a run directory with a {JOB_FILE}; name a job file, or"
            " files with --data"
        )
    config = JobConfig.from_yaml(path, list(overrides))
    return with_absolute_paths(config, os.environ, Path.cwd())


def _job_file(run: Place, checkpoint: Place) -> Path | None:
    """Return the job file of a run, or of the one that a checkpoint lies in, where there is one."""
    folders = [place for place in (run, checkpoint) if isinstance(place, Path)]
    files = [folders[0] / JOB_FILE] if folders else []
    files += [folder.resolve().parents[1] / JOB_FILE for folder in folders[1:]]
    return next((file for file in files if file.is_file()), None)


def _check_tasks(found: FeatureSpec, tasks: tuple[str, ...]) -> None:
    """Refuse labels that are not those of what the model predicts."""
    names = tuple(task.name for task in found.tasks)
    if names == tasks:
        return
    what = f"the model's tasks are {', '.join(tasks)}" if tasks else "the model has one label"
    raise ConfigError(
        f"data.labels names {', '.join(names) or 'none'}, and {what}; name the same, in that order,"
        + (" each with its column" if tasks else " by data.label")
    )


def _check_features(found: FeatureSpec, expected: FeatureSpec) -> None:
    """Refuse a job that would feed the model other features than it was trained on."""
    if found.inputs() == expected.inputs():
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
