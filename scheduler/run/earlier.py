"""What an earlier run of a job has left in its directory, for a job that goes on with it."""

import json
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ps.checkpoint.intact import checkpoints_in
from runtime.durable import write_text
from runtime.growing_files import opened_metrics
from runtime.places import Place, is_file
from runtime.strict_json import json_text
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.errors import RunDirectoryError
from scheduler.job.config import JobConfig
from scheduler.run.directory import (
    EPOCH_FILE,
    EVALUATION_PLAN_FILE,
    FAILURE_FILE,
    FINGERPRINTS_FILE,
    JOB_FILE,
    KEPT_APART,
    PLAN_FILE,
    RESULT_FILE,
    holds_run,
    is_free,
    is_same,
    wanted_place,
)
from scheduler.run.frozen_plan import read_plan
from scheduler.run.kept_apart import RUN_FILE, UNSEEN_EPOCHS, Holder, fetch, holder_at
from scheduler.run.lease import RunLease
from scheduler.run.recoveries import RecoveryFigures
from scheduler.run.results import read_result
from scheduler.run.same_job import check_same_job
from scheduler.run.saved_cuts import SavedCut, saved_cuts
from worker.data.plan import Plan
from worker.data.planning import check_unchanged

MAX_EPOCH = 2**31 - 1
# Of checkpoints that can't be gone on from, in one message.
MOST_REASONS = 2

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
    place, kept = _place_apart(config), None
    if not holds_run(path):
        kept = None if place is None else _kept_at(place, path)
        if kept is None and wanted == "require":
            where = "" if place is None else f", nor is one kept in {place}"
            raise RunDirectoryError(
                f"run.resume is require, and run.dir {path} holds no run{where}"
            )
        if kept is None:
            return None
    was_there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lease = RunLease(path, job=config.name)
    except OSError as error:
        raise RunDirectoryError(
            f"run.dir {path} can't be written: {error.strerror or error}"
        ) from error
    try:
        if place is not None and kept is not None:
            _fetch(place, path, kept)
        return _looked_at(config, path, lease)
    except BaseException:
        lease.close()
        if kept is not None:
            _take_away(path, whole=not was_there)
        raise


def _place_apart(config: JobConfig) -> Place | None:
    """Return where checkpoints lie with what the run keeps beside them, if it does."""
    if config.checkpoint.path is None:
        return None
    place = wanted_place(config)
    return None if is_same(place, Path(config.run.dir)) else place


def _kept_at(place: Place, path: Path) -> Holder | None:
    """Return who worked on a run that can be gone on with in a directory that lacks it, if any."""
    # Somebody may have been killed who fetched it.
    if path.exists() and not (path.is_dir() and is_free(path, but_for=(RUN_FILE, *KEPT_APART))):
        return None  # whoever makes the directory says so
    try:
        is_there = all(is_file(place / name) for name in (JOB_FILE, PLAN_FILE))
        return _holder_at(place) if is_there and checkpoints_in(place) else None
    except OSError as error:
        raise RunDirectoryError(f"checkpoint.path {place} can't be read: {error}") from error


def _holder_at(place: Place) -> Holder | None:
    try:
        return holder_at(place)
    except OSError as error:
        raise RunDirectoryError(f"checkpoint.path {place} can't be read: {error}") from error


def _fetch(place: Place, path: Path, holder: Holder) -> None:
    """Have in the run directory what the run kept beside its checkpoints; the job file last."""
    try:
        if holder.run is not None:
            write_text(path / RUN_FILE, json_text({"run": holder.run}) + "\n")
        fetch(place, path, KEPT_APART)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"run.resume: the run in {place} can't be fetched to {path}: {error}"
        ) from error


def _take_away(path: Path, *, whole: bool) -> None:
    """Leave a directory as it was before a run was fetched, which can't be gone on with."""
    if whole:
        shutil.rmtree(path, ignore_errors=True)
        return
    for name in (JOB_FILE, RUN_FILE, *KEPT_APART):
        with suppress(OSError):
            (path / name).unlink(missing_ok=True)


def _looked_at(config: JobConfig, path: Path, lease: RunLease) -> EarlierRun:
    before = check_same_job(path / JOB_FILE, config)
    result = read_result(path / RESULT_FILE) if (path / RESULT_FILE).exists() else None
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
                f"run.resume: no checkpoint of {path} can be gone on from: {_listed(passed_over)}."
                " Nothing was changed; run.overwrite=true instead of run.resume begins anew and"
                " removes them"
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
        recovery_epoch=_latest_epoch(path, cut, _place_apart(config)),
        plan=plan,
        evaluation_plan=evaluation_plan,
    )


def _listed(passed_over: list[str]) -> str:
    """Say why the newest checkpoints can't be gone on from, and of how many more that is so."""
    newest, more = passed_over[:MOST_REASONS], len(passed_over) - MOST_REASONS
    return "; ".join(newest) + (f"; nor can {more} older ones" if more > 0 else "")


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


def _latest_epoch(path: Path, cut: SavedCut, place: Place | None) -> int:
    """Return the latest recovery epoch of a run; its first one has no file.

    Where another process has worked on it than the one whose directory this is, which may have
    gone through epochs of which no checkpoint was written, one that it can't have come to.
    """
    of_cut = cut.reader.manifest.recovery_epoch
    epoch = max(of_cut, _epoch_of(path, of_cut))
    holder = None if place is None else _holder_at(place)
    if holder is None or holder.holder == _token_of(path):
        return epoch
    _log.warning(
        "what %s lacks of the run is taken from %s, on which %s worked: where that still does it"
        " ends before it writes another checkpoint", path, place, holder.described,
    )  # fmt: skip
    return max(epoch, holder.recovery_epoch) + UNSEEN_EPOCHS


def _epoch_of(path: Path, of_cut: int) -> int:
    """Return the recovery epoch that a run directory tells of, 0 where it tells of none."""
    file = path / EPOCH_FILE
    if not file.exists():
        return 0
    try:
        epoch = _object_of(file).get("recovery_epoch")
        if not isinstance(epoch, int) or not 0 <= epoch < MAX_EPOCH:
            raise RunDirectoryError(f"{file} is damaged: its recovery_epoch is {epoch!r}")
    except RunDirectoryError as error:
        _log.warning("%s; that of the checkpoint is taken: %d", error, of_cut)
        return 0
    return epoch


def _token_of(path: Path) -> object:
    """Return by which the process that worked in a directory last is known."""
    try:
        return _object_of(path / RUN_FILE).get("holder")
    except RunDirectoryError:
        return None


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
