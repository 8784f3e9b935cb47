"""The cuts of a running job: the servers write what they have frozen, nobody waits for it."""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.manifest import Parent, write_manifest
from ps.checkpoint.pace import SHARE_OF_INTERVAL
from ps.checkpoint.write import begin_checkpoint, give_up_checkpoint, publish_checkpoint
from runtime.places import Place
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.cuts import Cut
from scheduler.coordinator.growing_plan import PlanState
from scheduler.driver.answers import answers_of
from scheduler.driver.manifests import manifest_of
from scheduler.driver.processes import COORDINATOR, Processes, Who
from scheduler.driver.ray_calls import seconds_to_move
from scheduler.driver.resolved import JobSpecs
from scheduler.run.directory import RunDirectory

# For a cut that somebody waits for to get its name. In a store it may take longer.
PUBLISH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class CutEnd:
    """What came of a cut.

    Args:
        path: where it is, as a point to go on from; None: nothing was written.
        error: what went wrong then.
        state: of the coordinator, that it holds.
        num_bytes: of its files and of those that it lies on.
    """

    cut: Cut
    path: Place | None = None
    error: str | None = None
    state: CoordinatorState | None = None
    num_bytes: int = 0

    @property
    def plan(self) -> PlanState | None:
        """Of a stream the plan that it holds."""
        return None if self.state is None else self.state.plan


@dataclass(slots=True)
class _Writing:
    """A cut that is being written.

    Args:
        partial: where.
        calls: of the servers, and of the coordinator for its state at the cut's step.
        late: those of them that have not ended.
        until: when they must have ended, as `time.monotonic()`.
        hurried: whether it is written as fast as it goes.
        state: of the coordinator, once it is known.
        num_bytes: of its files, once they are.
        published: ends once the checkpoint is there under its name.
    """

    cut: Cut
    partial: Place
    calls: dict[Who, Any]
    late: list[Any]
    until: float
    published: "Future[tuple[Place, str]] | None" = None
    hurried: bool = False
    state: CoordinatorState | None = None
    num_bytes: int = 0


class RunningCuts:
    """Has cuts written one after another, and looks now and then how far they are.

    Args:
        specs, processes: of the job.
        run: where they are written.
    """

    def __init__(self, specs: JobSpecs, processes: Processes, run: RunDirectory) -> None:
        self._specs = specs
        self._processes = processes
        self._run = run
        self._writing: _Writing | None = None
        # The last one of this epoch, or with which it began: what comes next may lie on it.
        self._parent: Parent | None = None
        self._chain_bytes = 0  # of that one and of those that it lies on
        self._began = time.monotonic()  # the last one, or the job
        # Files are flushed there, and removed.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="cuts")

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._writing is not None

    @property
    def awaited(self) -> list[Any]:
        """Calls whose end is news."""
        return [] if self._writing is None else self._writing.late

    def look(self, cut: Cut | None, num_bytes: int, *, in_a_hurry: bool = False) -> CutEnd | None:
        """Go on with what can be done without waiting; return what came of a cut that ended.

        Args:
            cut: that all shards hold frozen, if they do.
            num_bytes: about as much as all servers hold.
            in_a_hurry: whether somebody waits for a cut, be it the end of the job.

        Raises:
            ProcessLostError: a server or the coordinator died meanwhile.
            TrainingError: another process has gone on with the run.
        """
        if self._writing is None:
            if cut is not None and cut.kind == "delta" and self._parent is None:
                return CutEnd(cut, error=f"the delta of step {cut.step} lies on nothing")
            if cut is not None:
                try:
                    self._begin(cut, num_bytes, 0.0 if in_a_hurry else self._seconds_to_spread())
                except OSError as error:
                    return CutEnd(cut, error=f"a checkpoint can't be written: {error}")
            return None
        writing = self._writing
        if in_a_hurry and not writing.hurried:
            writing.hurried = True
            step = writing.cut.step
            self._processes.of_servers(lambda handle: handle.hurry_cut.remote(step))
        try:
            if writing.published is None:
                self._publish_once_written(writing)
            published = writing.published
            if published is None:
                return None
            wait([published], timeout=PUBLISH_SECONDS if in_a_hurry else 0.0)
            if not published.done():
                return None
            path, seal = published.result()
        except (RayTaskError, OSError, ValueError) as error:
            self.forget()
            text = getattr(error, "cause", None) or error
            return CutEnd(writing.cut, error=f"the {writing.cut.kind} checkpoint of step"
                          f" {writing.cut.step} could not be written: {text}")  # fmt: skip
        self._writing = None
        self._parent = Parent(path.name, seal)
        self._chain_bytes *= writing.cut.kind == "delta"
        self._chain_bytes += writing.num_bytes
        return CutEnd(writing.cut, path, state=writing.state, num_bytes=self._chain_bytes)

    def forget(self, parent: Parent | None = None) -> None:
        """Give up what is being written; what comes next lies on `parent`, else on nothing."""
        writing, self._writing, self._parent = self._writing, None, parent
        if writing is not None:
            self._beside.submit(_give_up, writing)

    def close(self) -> None:
        """Give up what is being written, and wait until its files are gone."""
        self.forget()
        self._beside.shutdown()

    # Inside -----------------------------------------------------------------------------------

    def _seconds_to_spread(self) -> float:
        """Return how long a cut may take that nobody waits for."""
        interval = time.monotonic() - self._began
        every_seconds = self._specs.config.checkpoint.every_seconds
        if every_seconds is not None:
            interval = min(interval, every_seconds)
        return SHARE_OF_INTERVAL * interval

    def _begin(self, cut: Cut, num_bytes: int, seconds: float) -> None:
        partial = begin_checkpoint(self._run.checkpoint_path(cut.kind, cut.step))
        compression = self._specs.config.checkpoint.compression
        calls = self._processes.of_servers(
            lambda handle: handle.write_cut.remote(
                str(partial),
                cut.step,
                changed_only=cut.kind == "delta",
                compression=compression,
                seconds=seconds,
            )
        )
        calls[COORDINATOR] = self._processes.coordinator.handle.cut_state.remote(cut.step)
        self._began = time.monotonic()
        until = self._began + seconds + seconds_to_move(num_bytes)
        late = list(calls.values())
        self._writing = _Writing(cut, partial, calls, late, until, hurried=seconds == 0.0)

    def _publish_once_written(self, writing: _Writing) -> None:
        late = writing.late
        if late:
            _, writing.late = ray.wait(late, num_returns=len(late), timeout=0)
        if writing.late:
            if time.monotonic() > writing.until:
                raise TimeoutError(f"{len(writing.late)} servers have not written it in time")
            return
        answers = answers_of(self._processes, writing.calls)
        state = answers.pop(COORDINATOR)
        files: list[FileEntry] = [entry for found in answers.values() for entry in found]
        writing.state, writing.num_bytes = state, sum(entry.bytes for entry in files)
        cut = writing.cut
        manifest = manifest_of(
            self._specs,
            state,
            kind=cut.kind,
            recovery_epoch=self._run.recovery_epoch,
            run_id=self._run.run_id,
            files=files,
            taken=cut.at,
            parent=self._parent if cut.kind == "delta" else None,
            in_order=False,
        )
        path = self._run.checkpoint_path(cut.kind, cut.step)

        def publish() -> tuple[Place, str]:
            self._run.check_held()
            seal = write_manifest(writing.partial, manifest)
            return publish_checkpoint(writing.partial, path), seal

        writing.published = self._beside.submit(publish)


def _give_up(writing: _Writing) -> None:
    """Remove what is unfinished; where it is published nobody may have heard, it counts: it stays.

    In a store both have one name.
    """
    if writing.published is None or writing.published.exception() is not None:
        give_up_checkpoint(writing.partial)
