"""One training job from its job file to its result: plan, launch, supervise, finish."""

import logging
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from embedding import rule_for
from runtime.places import Place, place_of
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.cuts import RunningCuts
from scheduler.driver.epochs import Epochs
from scheduler.driver.finish import finish
from scheduler.driver.launch import Launcher, start_ray
from scheduler.driver.points import Point, job_beginning, newest_point, point_of
from scheduler.driver.processes import Processes
from scheduler.driver.publishing import Publishing
from scheduler.driver.recovery import Recovery
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.driver.setups import Setups
from scheduler.driver.shadows import refuse_shadows_of_actors
from scheduler.driver.standbys import Standbys
from scheduler.driver.stream_feed import StreamFeed
from scheduler.driver.streams import feed_of
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import TrainingError
from scheduler.job.config import JobConfig
from scheduler.job.paths import with_absolute_paths
from scheduler.job.publishing import publish_token
from scheduler.run.collector import Collector
from scheduler.run.directory import RunDirectory, place_of_checkpoints
from scheduler.run.earlier import EarlierRun, earlier_run
from scheduler.run.metrics import reached
from scheduler.run.recoveries import Recoveries
from scheduler.run.saved_cuts import first_needed, saved_cuts
from scheduler.views.progress import Progress
from worker.data.plan import Plan

_log = logging.getLogger(__name__)

STOPPED = "stopped before the end"


@dataclass(frozen=True, slots=True)
class Result:
    """What a job came to.

    Args:
        metrics: what result.json holds.
        checkpoint: directory of the final checkpoint.
        path: the run directory.
        evaluated: the files that `data.eval` named when the job began.
    """

    metrics: dict[str, Any]
    checkpoint: str
    path: str
    evaluated: tuple[str, ...] = ()


@dataclass(slots=True)
class _Held:
    """What has to be ended, as far as there is any of it; `ended`: the job came to its end."""

    publishing: Publishing | None = None
    processes: Processes | None = None
    cuts: RunningCuts | None = None
    feed: StreamFeed | None = None
    ended: bool = False

    def close(self) -> None:
        if self.feed is not None:
            self.feed.close()
        if self.publishing is not None:
            self.publishing.close(ended=self.ended)
        if self.processes is not None:
            self.processes.release()
        if self.cuts is not None:
            self.cuts.close()  # what servers were writing, which are gone now


@dataclass(frozen=True, slots=True)
class _Job:
    """What is under way; `first`: where it begins."""

    processes: Processes
    supervisor: Supervisor
    recovery: Recovery
    recoveries: Recoveries
    collector: Collector
    first: Point


class Trainer:
    """Trains one job.

    Args:
        config: the job; relative paths are resolved against the working directory.

    Example:
        result = Trainer(JobConfig.from_yaml("jobs/dlrm.yaml")).fit()
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = with_absolute_paths(config, os.environ, Path.cwd())
        self._started_at: dict[str, float] = {}
        self._supervisor: Supervisor | None = None
        self._publish_token: bytes | None = None

    def fit(self) -> Result:
        """Run the job to its end.

        Raises:
            ConfigError, DataError, CheckpointError, RunDirectoryError, OSError: what the job file
                names can't be used; nothing was started.
            StartError: a module beside the job would stand in place of a package of ours.
            TrainingError: the job failed while it ran.
        """
        self._reached("called")
        refuse_shadows_of_actors(Path.cwd())
        publish = self.config.checkpoint.publish
        if publish is not None:
            self._publish_token = publish_token(publish, os.environ)
        earlier = earlier_run(self.config)
        if earlier is not None and earlier.result is not None:
            earlier.lease.close()
            _log.warning("%s has come to its end before: its result is returned", earlier.path)
            return _result(earlier.result, earlier.evaluation_plan, earlier.path)
        specs, run = self._planned(earlier)
        self._reached("planned")
        try:
            return self._run(specs, run, earlier)
        except (OSError, ValueError, ray.exceptions.RayError) as error:
            # Ray wraps what an actor raised; the person wants to read the cause.
            text = str(getattr(error, "cause", None) or error)
            run.write_failure(text, self._how_far())
            raise TrainingError(text) from error
        except TrainingError as error:
            run.write_failure(str(error), self._how_far())
            raise
        except KeyboardInterrupt as error:
            run.write_failure(str(error) or STOPPED, self._how_far())
            raise
        except BaseException as error:  # of our own making, or no memory: it goes on as it is
            run.write_failure(f"{type(error).__name__}: {error}", self._how_far())
            raise
        finally:
            run.close()

    def _planned(self, earlier: EarlierRun | None) -> tuple[JobSpecs, RunDirectory]:
        """Return what is known before Ray starts, and the run directory, which is ours then."""
        try:
            specs = resolve(self.config, earlier)
            rule = rule_for(specs.store.dense_optimizer, sparse=False)
            goes_on = None
            if earlier is not None and earlier.cut is not None:
                goes_on = earlier.recovery_epoch
            run = RunDirectory(
                self.config,
                least_checkpoint_bytes=4 * rule.row_width(specs.store.dense_size),
                lease=None if earlier is None else earlier.lease,
                goes_on=goes_on,
            )
        except BaseException:
            if earlier is not None:
                earlier.lease.close()
            raise
        if goes_on is None:
            run.write_plans(specs.plan, specs.evaluation_plan)
        return specs, run

    def _how_far(self) -> dict[str, Any]:
        status = None if self._supervisor is None else self._supervisor.last_status
        return {} if status is None else reached(status)

    def _run(self, specs: JobSpecs, run: RunDirectory, earlier: EarlierRun | None) -> Result:
        joined = ray.is_initialized()
        if not joined:
            start_ray(self.config.cluster, namespace=f"synchromesh-{run.path.name}-{os.getpid()}")
        self._reached("ray")
        held = _Held()
        try:
            held.publishing = Publishing(self.config, run, self._publish_token)
            with Progress(self.config, specs.plan) as progress:
                run.losses.note = progress.note
                job = self._made(specs, run, earlier, held, progress)
                metrics = self._trained(job, specs, run, earlier, held, progress)
        finally:
            held.close()
            if not joined:
                ray.shutdown()
        return _result(metrics, specs.evaluation_plan, run.path)

    def _made(
        self,
        specs: JobSpecs,
        run: RunDirectory,
        earlier: EarlierRun | None,
        held: _Held,
        progress: Progress,
    ) -> _Job:
        """Create the processes of a job, and what supervises them."""
        config, note = self.config, progress.note
        assert held.publishing is not None, "it comes first: it may be refused"
        goes_on = earlier is not None and earlier.cut is not None
        launcher = Launcher(
            config.cluster,
            mixed_cpus=config.training.mixed_cpus,
            run=run.path.name,
            note=note,
            fingerprints=None if earlier is None else earlier.fingerprints,
            libraries=("torch",) if specs.model.type == "torch" else (),
        )
        progress.phase("starting servers, coordinator and workers")
        reached = earlier.step if earlier is not None and goes_on else None
        setups = Setups(specs, launcher.secret, reached=reached)
        processes = held.processes = launcher.create(setups.server)
        cuts = held.cuts = RunningCuts(specs, processes, run)
        collector = Collector(run.path, config.checkpoint.keep, note)
        if earlier is not None and earlier.cut is not None:
            first = point_of(earlier.cut, specs)
        else:
            first = job_beginning(specs)
        if first.checkpoint is not None:
            held.publishing.readable(first.checkpoint.name)
        if held.publishing.address is not None:
            note(f"checkpoints are published at {held.publishing.address}")
        if first.state.plan is not None:
            held.feed = feed_of(specs, run, first.state.plan, note)
        recoveries = Recoveries(
            config.cluster.max_failures, before=() if earlier is None else earlier.recoveries
        )
        supervisor = self._supervisor = Supervisor(
            launcher=launcher,
            processes=processes,
            config=config,
            run=run,
            progress=progress,
            recoveries=recoveries,
            cuts=cuts,
            collector=collector,
            feed=held.feed,
            standbys=Standbys(config.cluster, launcher, processes, setups, run, note),
            planned_samples=progress.total_samples,
            setups=setups,
            published=held.publishing.readable,
            specs=specs,
            restarts_before=0 if earlier is None else earlier.worker_restarts,
        )
        epochs = Epochs(
            feed=held.feed,
            specs=specs,
            launcher=launcher,
            processes=processes,
            run=run,
            setups=setups,
            workforce=supervisor.workforce,
            reached=self._reached,
            note=note,
        )

        def newest(damaged: set[Place]) -> Point:
            collector.damaged = damaged
            collector.wait()
            return newest_point(run.path, specs, damaged, note)

        recovery = Recovery(
            epochs=epochs,
            supervisor=supervisor,
            recoveries=recoveries,
            newest_point=newest,
            note=note,
        )
        return _Job(processes, supervisor, recovery, recoveries, collector, first)

    def _trained(
        self,
        job: _Job,
        specs: JobSpecs,
        run: RunDirectory,
        earlier: EarlierRun | None,
        held: _Held,
        progress: Progress,
    ) -> dict[str, Any]:
        """Train a job to its end, and return its metrics."""
        feed, collector = held.feed, job.collector
        writer = CheckpointWriter(specs, job.processes, run)

        def to_the_end() -> dict[str, Any]:
            took = self._started_at["workers"] - self._started_at["ray"]
            progress.phase(f"training (started in {took:.1f} s)")
            job.supervisor.until_trained()
            return finish(
                specs,
                job.processes,
                job.supervisor,
                run,
                writer,
                progress,
                feed=feed,
                started_at=self._started_at,
            )

        if earlier is not None and earlier.cut is not None:
            job.recoveries.resumes(
                step=earlier.step, samples=earlier.samples, now=self._started_at["called"]
            )
            progress.note(f"the run goes on from {job.first.described}")
        try:
            metrics = job.recovery.run(job.first, to_the_end)
        except KeyboardInterrupt as error:
            # Now: whoever stops us may not wait until the processes are gone.
            text = f"{STOPPED}; {_where_to_go_on(run.path, collector.damaged)}"
            run.write_failure(text, self._how_far())
            progress.note(text)
            raise KeyboardInterrupt(text) from error
        held.ended = True
        assert held.publishing is not None, "it came first"
        held.publishing.readable(place_of(metrics["checkpoint"]).name)
        collector.wait()  # it may still be at what came before the last checkpoint
        collector.collect()
        collector.wait()
        if feed is not None:
            feed.forget(first_needed(run.path))
        return metrics

    def _reached(self, moment: str) -> None:
        """Note when the job's start got so far; what is started again later is no start."""
        self._started_at.setdefault(moment, time.time())


def _where_to_go_on(run: Path, damaged: Collection[Place]) -> str:
    """Say from where a run can go on, leaving out checkpoints that turned out to be damaged."""
    cut = next(saved_cuts(run, _log.warning, without=damaged), None)
    if cut is None:
        return "no checkpoint was written, so there is nothing to go on from"
    return f"with run.resume=auto it can go on from step {cut.state.step} ({cut.path.name})"


def _result(metrics: dict[str, Any], evaluation_plan: Plan | None, run: Path) -> Result:
    evaluated = evaluation_plan.files if evaluation_plan is not None else ()
    return Result(
        metrics=metrics,
        # Where the run is now: its directory may have moved since.
        checkpoint=str(place_of_checkpoints(run) / place_of(metrics["checkpoint"]).name),
        path=str(run),
        evaluated=tuple(file.path for file in evaluated),
    )
