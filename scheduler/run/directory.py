"""The run directory: what a run leaves behind."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps.checkpoint.intact import checkpoints_in
from ps.checkpoint.manifest import MANIFEST, CheckpointError, Manifest, read_manifest
from runtime.durable import PARTIAL, write_text
from runtime.growing_files import METRICS_FILE, Losses, MetricsFiles, metrics_files
from runtime.places import Place, StoredPath, is_file, make_folder_at, place_of
from runtime.strict_json import json_text
from scheduler.coordinator.batch_trace import BatchFile, BatchSpan
from scheduler.errors import RunDirectoryError, TrainingError
from scheduler.job.config import JobConfig
from scheduler.job.job_yaml import read_yaml
from scheduler.run.frozen_plan import write_plan
from scheduler.run.kept_apart import RUN_FILE, Holder, forget, hold, holder_at, keep
from scheduler.run.lease import LEASE_FILES, LOCK_FILE, RunLease
from scheduler.run.plan_log import PLAN_FOLDER
from scheduler.run.retention import remove, remove_partial, remove_unfinished
from scheduler.run.tensorboard import TensorBoardEvents, require_tensorboard
from worker.data.plan import Plan

JOB_FILE = "job.yaml"
PLAN_FILE = "plan.json"
BATCHES_FILE = "batches.jsonl"
RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"
CONTROL_FILE = "control.json"
EPOCH_FILE = "epoch.json"
EVALUATION_PLAN_FILE = "evaluation-plan.json"
FINGERPRINTS_FILE = "fingerprints.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
QUARANTINE = "quarantine"
ARRIVED = "arrived"  # files of a stream that has none of its own
_FILES = (
    JOB_FILE,
    PLAN_FILE,
    BATCHES_FILE,
    RESULT_FILE,
    FAILURE_FILE,
    CONTROL_FILE,
    EPOCH_FILE,
    RUN_FILE,
    EVALUATION_PLAN_FILE,
    FINGERPRINTS_FILE,
)

# What is kept beside checkpoints that lie apart from the run directory, `run.json` too.
PLANS = (PLAN_FILE, EVALUATION_PLAN_FILE)
KEPT_APART = (RESULT_FILE, FINGERPRINTS_FILE, *PLANS, JOB_FILE)

_NAME = re.compile(r"(?P<kind>full|delta)-(?P<step>\d{1,19})(-(?P<number>\d{1,9}))?")

# A run needs at least this much beside its checkpoint: logs of metrics and the plan.
_MIN_FREE_BYTES = 16 << 20


class RunDirectory:
    """Files of one run; `losses` are of those that are only looked at.

    `recovery_epoch` is the history of the job that is under way. Where checkpoints lie apart, what
    it takes to go on with the run is kept beside them, see `kept_apart`.

    Args:
        config: the resolved job.
        least_checkpoint_bytes: what its checkpoint needs at the very least.
        lease: of the directory, where it was taken before; the run there is the job's own.
        goes_on: the recovery epoch that the run there came to, if the job goes on with it; it
            enters the next one. None: what a run before has left is removed.

    Raises:
        ConfigError: `run.tensorboard` is set and the package for it is missing.
        RunDirectoryError: it exists and `run.overwrite` is not set, it holds something else or
            what the run starts from, it can't be written, or there is no space.
    """

    def __init__(
        self,
        config: JobConfig,
        *,
        least_checkpoint_bytes: int,
        lease: RunLease | None = None,
        goes_on: int | None = None,
    ) -> None:
        if config.run.tensorboard:
            require_tensorboard()
        self.path = Path(config.run.dir)
        self.losses = Losses()
        self.recovery_epoch = goes_on or 0
        self.checkpoints = wanted_place(config)
        self.run_id = ""
        self._token = secrets.token_hex(8)  # of this process, as the run's holder
        self._fingerprints: dict[str, dict[str, Any]] = {}
        try:
            if lease is None:
                self._check_place(config)
                self.path.mkdir(parents=True, exist_ok=True)
                lease = RunLease(self.path, job=config.name)
            self._lease = lease
            try:
                self._begin(config, least_checkpoint_bytes, anew=goes_on is None)
            except BaseException:
                self._lease.close()
                raise
        except OSError as error:
            raise RunDirectoryError(
                f"run.dir {self.path} can't be written: {error.strerror or error}"
            ) from error
        self._metrics = MetricsFiles(self.path, goes_on=goes_on is not None)
        self._batches = BatchFile(self.path / BATCHES_FILE, goes_on=goes_on is not None)
        self._events = (
            TensorBoardEvents(self.path / TENSORBOARD) if config.run.tensorboard else None
        )

    def _begin(self, config: JobConfig, least_checkpoint_bytes: int, *, anew: bool) -> None:
        if anew:
            self._make_way()
        free = shutil.disk_usage(self.path).free
        here = isinstance(self.checkpoints, Path)
        needed = least_checkpoint_bytes * here + _MIN_FREE_BYTES
        if free < needed:
            raise RunDirectoryError(
                f"run.dir {self.path} has {free >> 20} MiB free, the run needs at least"
                f" {needed >> 20} MiB"
            )
        if not anew:
            self.enter_epoch()
            self._remove_partial_files()
            for name in (CONTROL_FILE, FAILURE_FILE, RESULT_FILE):
                (self.path / name).unlink(missing_ok=True)
        write_text(self.path / JOB_FILE, config.to_yaml())
        self.run_id = (None if anew else run_id_of(self.path)) or secrets.token_hex(8)
        self._write_json(RUN_FILE, {"run": self.run_id, "holder": self._token})
        if self._keeps_apart:
            self._hold_apart(config.name, anew=anew)
        if isinstance(self.checkpoints, StoredPath):
            remove_unfinished(self.checkpoints)
        else:
            remove_partial(self.checkpoints)

    @property
    def _is_apart(self) -> bool:
        """Whether checkpoints lie elsewhere than in the run directory."""
        return self.checkpoints != self.path / CHECKPOINTS

    @property
    def _keeps_apart(self) -> bool:
        return self._is_apart and not is_same(self.checkpoints, self.path)

    def _hold_apart(self, job: str, *, anew: bool) -> None:
        """Say whose the checkpoints are; that shows now that the place takes what is written."""
        place = self.checkpoints
        make_folder_at(place)
        forget(place, KEPT_APART if anew else (RESULT_FILE,))
        epoch = self.recovery_epoch
        hold(place, Holder(run=self.run_id, holder=self._token, recovery_epoch=epoch, job=job))
        keep(place, self.path, (JOB_FILE,) if anew else (*PLANS, JOB_FILE))

    def _keep_apart(self, *names: str) -> None:
        if self._keeps_apart:
            keep(self.checkpoints, self.path, names)

    def check_held(self) -> None:
        """Hold that nobody else has gone on with the run, before a checkpoint counts.

        Only a place apart says so: the directory has its lease.

        Raises:
            TrainingError: somebody has.
            OSError: the place can't be asked.
        """
        found = holder_at(self.checkpoints) if self._keeps_apart else None
        if found is not None and found.holder != self._token:
            raise TrainingError(
                f"the run of {self.checkpoints} was gone on with by {found.described}: this job"
                " ends, and nothing more of it counts"
            )

    def checkpoint_path(self, kind: str, step: int) -> Place:
        return self.checkpoints / f"{kind}-{step:012d}"

    def enter_epoch(self) -> int:
        """Raise the recovery epoch, put it onto the disk, and return it; raises OSError.

        Whatever the processes of the epochs before still do and say is then of an older one, also
        after the driver that raised it is gone.
        """
        self._write_json(EPOCH_FILE, {"recovery_epoch": self.recovery_epoch + 1})
        self.recovery_epoch += 1
        return self.recovery_epoch

    def write_plans(self, plan: Plan, evaluation_plan: Plan | None) -> None:
        """Keep what the data are, for who goes on with the run."""
        if evaluation_plan is not None:
            write_plan(self.path / EVALUATION_PLAN_FILE, evaluation_plan)
        write_plan(self.path / PLAN_FILE, plan)
        self._keep_apart(*PLANS)

    def keep_fingerprints(self, fingerprints: dict[str, dict[str, Any]]) -> None:
        """Keep the numeric fingerprint of each role, for who goes on with the run elsewhere."""
        if fingerprints != self._fingerprints:
            with self.losses.borne(FINGERPRINTS_FILE):
                self._write_json(FINGERPRINTS_FILE, fingerprints)
                self._keep_apart(FINGERPRINTS_FILE)
                self._fingerprints = fingerprints

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append one line, at once visible to who follows the file; bounded, and borne if lost."""
        with self.losses.borne(METRICS_FILE):
            self._metrics.add(line)
        if self._events is not None:
            with self.losses.borne(TENSORBOARD):
                self._events.add(line)

    def close(self) -> None:
        """Leave the directory; the job can't be found any more."""
        with contextlib.suppress(OSError):
            (self.path / CONTROL_FILE).unlink(missing_ok=True)
        self._lease.close()

    def add_batches(self, spans: Iterable[BatchSpan]) -> None:
        """Append who computed which batch when; bounded, and borne if lost."""
        with self.losses.borne(BATCHES_FILE):
            self._batches.add(spans)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the result whole or not at all."""
        self._write_json(RESULT_FILE, result)
        with self.losses.borne(f"{RESULT_FILE} of checkpoint.path"):
            self._keep_apart(RESULT_FILE)

    def write_control(self, control: dict[str, Any]) -> None:
        """Say how the running job can be found; no secrets."""
        self._write_json(CONTROL_FILE, control)

    def write_failure(self, text: str, reached: dict[str, Any]) -> None:
        """Say why the run ended before its end, where that can still be written.

        Args:
            reached: how far it came, see `reporting.reached`.
        """
        with contextlib.suppress(OSError):
            self._write_json(FAILURE_FILE, {"time": time.time(), "error": text, **reached})

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        write_text(self.path / name, json_text(value, indent=1) + "\n")

    def _check_place(self, config: JobConfig) -> None:
        """Refuse a place where the run may not be; nothing is changed."""
        source = config.run.init_from
        if source is not None:
            _check_apart(place_of(source), self.path, "run.dir")
            if self._is_apart:
                _check_apart(place_of(source), self.checkpoints, "checkpoint.path")
        self._check_checkpoints(overwrite=config.run.overwrite)
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunDirectoryError(f"run.dir {self.path} is a file")
        if is_free(self.path):
            return
        if not holds_run(self.path):
            raise RunDirectoryError(
                f"run.dir {self.path} exists and is not a run directory (it lacks {JOB_FILE} or"
                f" {PLAN_FILE}); it is left as it is. Choose another run.dir"
            )
        if not config.run.overwrite:
            raise RunDirectoryError(
                f"run.dir {self.path} exists. Choose another run.dir, or set run.overwrite=true"
                " to replace it, or run.resume=auto to go on with it"
            )

    def _check_checkpoints(self, *, overwrite: bool) -> None:
        """Refuse a place of checkpoints, apart from the run, that holds some of another run."""
        if not self._is_apart:
            return
        try:
            _make_usable(self.checkpoints)
            found = listed_checkpoints(self.checkpoints)
        except OSError as error:
            raise RunDirectoryError(
                f"checkpoint.path {self.checkpoints} can't be used: {error.strerror or error}"
            ) from error
        own = run_id_of(self.path) if overwrite else None
        others = [each.path.name for each in found if own is None or each.run_id != own]
        if others:
            raise RunDirectoryError(
                f"checkpoint.path {self.checkpoints} holds checkpoints of another run, such as"
                f" {others[-1]}; they are left as they are. Choose another checkpoint.path for each"
                " run, or remove them; run.resume=auto goes on with a run whose run.dir is gone"
            )

    def _make_way(self) -> None:
        """Remove what a run before has left."""
        if self._is_apart:
            for each in listed_checkpoints(self.checkpoints):
                remove(each.path)
        for path in metrics_files(self.path):
            path.unlink(missing_ok=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        self._remove_partial_files()
        for name in (CHECKPOINTS, TENSORBOARD, PLAN_FOLDER, QUARANTINE, ARRIVED):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _remove_partial_files(self) -> None:
        for name in _FILES:
            for partial in self.path.glob(f"{PARTIAL}-{name}-*"):
                partial.unlink(missing_ok=True)


def is_free(path: Path, *, but_for: Iterable[str] = ()) -> bool:
    """Whether a directory holds nothing but what says whose it is, and perhaps some files."""
    return not {entry.name for entry in path.iterdir()} - LEASE_FILES - set(but_for)


def is_same(place: Place, path: Path) -> bool:
    """Whether a place is a local folder, by whatever name."""
    return isinstance(place, Path) and place.resolve() == path.resolve()


def holds_run(path: Path) -> bool:
    """Whether a directory is that of a run; a job.yaml alone may be one that a person wrote."""
    others = (PLAN_FILE, LOCK_FILE)
    return (path / JOB_FILE).exists() and any((path / name).exists() for name in others)


def _make_usable(place: Place) -> None:
    """Make the folder where checkpoints go; raises OSError where none can be made or written."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def wanted_place(config: JobConfig) -> Place:
    """Return where a job's checkpoints go."""
    path = config.checkpoint.path
    return Path(config.run.dir) / CHECKPOINTS if path is None else place_of(path)


def _check_apart(source: Place, place: Place, field: str) -> None:
    """Refuse to start from what the run would replace."""
    if isinstance(source, Path) and isinstance(place, Path):
        inside = source.resolve().is_relative_to(place.resolve())
    else:
        inside = f"{source}/".startswith(f"{place}/")
    if inside:
        raise RunDirectoryError(
            f"run.init_from {source} lies in {field} {place}, which this run would replace."
            f" Choose another {field}"
        )


def run_id_of(run: Path) -> str | None:
    """Return by which a run's checkpoints are told from those of others; None: it is not known."""
    try:
        found = json.loads((run / RUN_FILE).read_bytes())["run"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def place_of_checkpoints(path: str | Place) -> Place:
    """Return where checkpoints are: of a run where its job file says, else the place itself."""
    run = place_of(path)
    if isinstance(run, StoredPath):
        return run
    try:
        place = read_yaml((run / JOB_FILE).read_text())["checkpoint"]["path"]
    except (OSError, ValueError, TypeError, KeyError):
        place = None
    if isinstance(place, str):
        return place_of(place)
    inside = run / CHECKPOINTS
    return inside if inside.is_dir() or holds_run(run) else run


@dataclass(frozen=True, slots=True)
class Listed:
    """A finished checkpoint; `manifest` is None where it can't be read."""

    path: Place
    manifest: Manifest | None

    @property
    def run_id(self) -> str | None:
        """The run that wrote it, as far as that is known."""
        found = None if self.manifest is None else self.manifest.job.get("run")
        return found if isinstance(found, str) else None


def listed_checkpoints(place: Place) -> list[Listed]:
    """Return the finished checkpoints of a place, full ones and deltas, the oldest first.

    A later recovery epoch is the history that holds, whatever steps an earlier one had come to. One
    that says none, as its manifest can't be read, stands where its step is.
    """
    found: list[tuple[int, Listed]] = []
    epoch = 0
    for path in sorted(checkpoints_in(place), key=_order):
        try:
            manifest, _ = read_manifest(path / MANIFEST)
        except CheckpointError:
            found.append((epoch, Listed(path, None)))
        else:
            epoch = manifest.recovery_epoch
            found.append((epoch, Listed(path, manifest)))
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def latest_checkpoint(path: str | Place) -> Place:
    """Return the checkpoint at a place: itself, or the newest one of a run or of a folder of them.

    Raises:
        RunDirectoryError: there is none.
    """
    place = place_of(path)
    if is_file(place / MANIFEST):
        return place
    found = checkpoints_of(place)
    if not found:
        raise RunDirectoryError(
            f"{str(path) or repr('')} is neither a checkpoint nor a run directory with a finished"
            " checkpoint"
        )
    return found[-1]


def checkpoints_of(run: str | Place) -> list[Place]:
    """Return the finished checkpoints of a run, full ones and deltas, the oldest first."""
    return [each.path for each in listed_checkpoints(place_of_checkpoints(run))]


def _order(checkpoint: Place) -> tuple[int, bool, int]:
    """Return step, kind and number of a checkpoint.

    A job's last one, which is full, may be of the same step as a delta before it.
    """
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match["step"]), match["kind"] == "full", int(match["number"] or 1)
