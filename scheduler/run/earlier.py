"""What an earlier run of a job has left in its directory, for a job that goes on with it."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.growing_files import opened_metrics
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.errors import RunDirectoryError
from scheduler.job.config import JobConfig
from scheduler.run.directory import (
    EPOCH_FILE,
    EVALUATION_PLAN_FILE,
    FAILURE_FILE,
    FINGERPRINTS_FILE,
    JOB_FILE,
    PLAN_FILE,
    RESULT_FILE,
    holds_run,
)
from scheduler.run.frozen_plan import read_plan
from scheduler.run.lease import RunLease
from scheduler.run.recoveries import RecoveryFigures
from scheduler.run.same_job import check_same_job
from scheduler.run.saved_cuts import SavedCut, saved_cuts
from worker.data.plan import Plan
from worker.data.planning import check_unchanged

MAX_EPOCH = 2**31 - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """A run that its job goes on with, or begins again where it left nothing to go on from.

    Args:
        path: its directory.
        lease: of that, which the caller has to give back.
        result: of a run that came to its end; its data are not looked at then. One on a stream
            that somebody has stopped did not.
        cut: the newest checkpoint to go on from; None: the job begins anew.
        recovery_epoch: the latest that the run came to.
        recoveries: of the run so far.
        worker_restarts: workers that were replaced in the run so far.
        fingerprints: of its processes, by role, as far as they are known.
        step, samples: that it is known to have come to, at least those of the cut.
        plan, evaluation_plan: those that it began with, where it goes on; of a result the second.
    """

    path: Path
    lease: RunLease
    result: dict[str, Any] | None = None
    cut: SavedCut | None = None
    recovery_epoch: int = 0
    recoveries: tuple[RecoveryFigures, ...] = ()
    worker_restarts: int = 0
    fingerprints: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    samples: int = 0
    plan: Plan | None = None
    evaluation_plan: Plan | None = None


def earlier_run(config: JobConfig) -> EarlierRun | None:
    """Look for what `run.resume` wants to go on with; nothing there is changed.

    Returns:
        None where there is no run, and none is required.

    Raises:
        RunDirectoryError: there is none and one is required, another process works on it, it has
            checkpoints of which none can be used, or its plan is damaged.
        ConfigError: it is of another job.
        DataError: the data are not what they were.
    """
    path, wanted = Path(config.run.dir), config.run.resume
    if wanted == "never":
        return None
    if not holds_run(path):
        if wanted == "require":
            raise RunDirectoryError(f"run.resume is require, and run.dir {path} holds no run")
        return None
    try:
        lease = RunLease(path, job=config.name)
    except OSError as error:
        raise RunDirectoryError(
            f"run.dir {path} can't be written: {error.strerror or error}"
        ) from error
    try:
        return _looked_at(config, path, lease)
    except BaseException:
        lease.close()
        raise


def _looked_at(config: JobConfig, path: Path, lease: RunLease) -> EarlierRun:
    before = check_same_job(path / JOB_FILE, config)
    result = _object_of(path / RESULT_FILE) if (path / RESULT_FILE).exists() else None
    is_stopped = config.data.stream is not None and bool(result and result.get("stopped"))
    if result is not None and not is_stopped:
        evaluated = path / EVALUATION_PLAN_FILE
        return EarlierRun(
            path=path,
            lease=lease,
            result=result,
            evaluation_plan=read_plan(evaluated) if evaluated.exists() else None,
        )
    passed_over: list[str] = []
    cut = next(saved_cuts(path, passed_over.append), None)
    if cut is None:
        if passed_over:
            raise RunDirectoryError(
                f"run.resume: no checkpoint of {path} can be gone on from:"
                f" {'; '.join(passed_over)}. Nothing was changed; run.overwrite=true instead of"
                " run.resume begins anew and removes them"
            )
        if config.run.resume == "require":
            raise RunDirectoryError(
                f"run.resume is require, and the run in {path} ended before it had written a"
                " checkpoint. run.resume=auto begins anew then"
            )
        return EarlierRun(path=path, lease=lease)
    for text in passed_over:
        _log.warning("%s. An older one is taken: %s", text, cut.path)
    plan = read_plan(path / PLAN_FILE)
    evaluation_plan = None
    if config.data.eval is not None:
        evaluation_plan = read_plan(path / EVALUATION_PLAN_FILE)
    # Of a stream the plan is a sample, which may be gone by now.
    for each in (None if config.data.stream else plan, evaluation_plan):
        if each is not None:
            check_unchanged(each)
    return EarlierRun(
        path=path,
        lease=lease,
        **_told_by_files(path, cut.state),
        cut=replace(cut, state=_as_wanted(cut.state, before, config)),
        recovery_epoch=_latest_epoch(path, cut),
        plan=plan,
        evaluation_plan=evaluation_plan,
    )


def _as_wanted(state: CoordinatorState, before: JobConfig, now: JobConfig) -> CoordinatorState:
    """Take from the job file what people may have changed there since, and train."""
    count = state.num_workers
    if before.cluster.workers != now.cluster.workers:
        count = now.cluster.workers
    automatic = state.workers_automatic
    if before.cluster.autoscale != now.cluster.autoscale:
        automatic = now.cluster.autoscale
    ledger = state.ledger
    if now.data.stream is not None:
        ledger = replace(ledger, limit=None)  # whoever stopped it has started it again
    return replace(
        state,
        ledger=ledger,
        num_workers=min(count, now.max_workers),
        workers_automatic=automatic,
        paused=False,
    )


def _latest_epoch(path: Path, cut: SavedCut) -> int:
    """Return the latest recovery epoch of a run; its first one has no file."""
    of_cut = cut.reader.manifest.recovery_epoch
    file = path / EPOCH_FILE
    if not file.exists():
        return of_cut
    try:
        epoch = _object_of(file).get("recovery_epoch")
        if not isinstance(epoch, int) or not 0 <= epoch < MAX_EPOCH:
            raise RunDirectoryError(f"{file} is damaged: its recovery_epoch is {epoch!r}")
    except RunDirectoryError as error:
        _log.warning("%s; that of the checkpoint is taken: %d", error, of_cut)
        return of_cut
    return max(epoch, of_cut)


def _told_by_files(path: Path, state: CoordinatorState) -> dict[str, Any]:
    """Return what a run's files tell of how far it came, of recoveries and of its processes.

    What can't be read there is left out: it is for people.
    """
    step, samples = state.step, state.ledger.samples.applied
    recoveries: list[RecoveryFigures] = []
    restarts = 0
    with opened_metrics(path) as (_, files):
        for row in (row for file in files for row in file):
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                line = json.loads(row)
                step = int(line["global_step"])
                samples = int(line.get("applied_samples", line["samples"]))
                recoveries += [RecoveryFigures(**told) for told in line["recoveries"]]
                restarts = int(line.get("worker_restarts", restarts))
    with suppress(RunDirectoryError, ValueError, TypeError, KeyError):
        failure = _object_of(path / FAILURE_FILE)
        step = max(step, int(failure["global_step"]))
        samples = max(samples, int(failure["applied_samples"]))
    fingerprints: dict[str, Any] = {}
    with suppress(RunDirectoryError):
        fingerprints = _object_of(path / FINGERPRINTS_FILE)
    return {
        "fingerprints": fingerprints,
        "step": max(step, state.step),
        "samples": max(samples, state.ledger.samples.applied),
        "recoveries": tuple(recoveries),
        "worker_restarts": restarts,
    }


def _object_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} can't be read: {error}") from error
    return value
