"""One training job from its job file to its result: plan, launch, supervise, finish."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from embedding import rule_for
from ps.server.server import ServerSetup
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.fault_plans import coordinator_faults, kill_step, worker_faults
from scheduler.driver.finish import finish
from scheduler.driver.launch import Launcher, Processes, start_ray
from scheduler.driver.remote import control_facts
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.driver.shadows import refuse_shadows_of_actors
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import TrainingError
from scheduler.job.config import JobConfig
from scheduler.job.paths import with_absolute_paths
from scheduler.run.directory import RunDirectory
from scheduler.run.metrics import reached
from scheduler.views.progress import Progress
from worker.loop import LoopOptions
from worker.models import build_model, initial_parameters
from worker.running import WorkerSetup

_log = logging.getLogger(__name__)


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
        specs = resolve(self.config)
        rule = rule_for(specs.store.dense_optimizer, sparse=False)
        run = RunDirectory(
            self.config, least_checkpoint_bytes=4 * rule.row_width(specs.store.dense_size)
        )
        run.write_plans(specs.plan, specs.evaluation_plan)
        self._reached("planned")
        try:
            return self._run(specs, run)
        except (OSError, ValueError, ray.exceptions.RayError) as error:
            # Ray wraps what an actor raised; the person wants to read the cause.
            text = str(getattr(error, "cause", None) or error)
            run.write_failure(text, self._how_far())
            raise TrainingError(text) from error
        except TrainingError as error:
            run.write_failure(str(error), self._how_far())
            raise
        except KeyboardInterrupt:
            run.write_failure("stopped before the end", self._how_far())
            raise
        except BaseException as error:  # of our own making, or no memory: it goes on as it is
            run.write_failure(f"{type(error).__name__}: {error}", self._how_far())
            raise
        finally:
            run.close()

    def _how_far(self) -> dict[str, Any]:
        status = None if self._supervisor is None else self._supervisor.last_status
        return {} if status is None else reached(status)

    def _run(self, specs: JobSpecs, run: RunDirectory) -> Result:
        joined = ray.is_initialized()
        if not joined:
            start_ray(self.config.cluster, namespace=f"synchromesh-{run.path.name}-{os.getpid()}")
        self._reached("ray")
        processes: Processes | None = None
        try:
            launcher = Launcher(
                self.config.cluster,
                mixed_cpus=self.config.training.mixed_cpus,
                run=run.path.name,
            )
            with Progress(self.config, specs.plan) as progress:
                run.losses.note = progress.note
                progress.phase("starting servers, coordinator and workers")
                started = time.monotonic()
                processes = launcher.create(_server_setups(specs, launcher.secret))
                parts = _dense_parts(specs)
                launcher.start_servers(
                    processes,
                    parts,
                    specs.beginning,
                )
                self._reached("servers")
                launcher.start_coordinator(
                    processes,
                    specs.coordinator,
                    coordinator_faults(
                        self.config,
                        started=time.time(),
                        first_step=specs.coordinator.start.step,
                    ),
                )
                self._reached("coordinator")
                run.write_control(
                    control_facts(processes, recovery_epoch=specs.coordinator.recovery_epoch)
                )
                writer = CheckpointWriter(specs, processes, run)
                supervisor = self._supervisor = Supervisor(
                    launcher=launcher,
                    processes=processes,
                    setup=_worker_setup(specs, launcher.secret, processes),
                    config=self.config,
                    run=run,
                    progress=progress,
                    write_checkpoint=lambda status: str(writer.write(status).path),
                )
                supervisor.start_workers()
                self._reached("workers")
                progress.phase(f"training (started in {time.monotonic() - started:.1f} s)")
                supervisor.until_trained()
                metrics, checkpoint = finish(
                    specs, processes, supervisor, run, writer, progress, started_at=self._started_at
                )
        finally:
            if processes is not None:
                processes.release()
            if not joined:
                ray.shutdown()
        evaluated = specs.evaluation_plan.files if specs.evaluation_plan is not None else ()
        return Result(metrics, checkpoint, str(run.path), tuple(file.path for file in evaluated))

    def _reached(self, moment: str) -> None:
        """Note when the job's start got so far."""
        self._started_at[moment] = time.time()


def _dense_parts(specs: JobSpecs) -> list[np.ndarray]:
    """The initial dense parameters, each shard's part."""
    vector = initial_parameters(build_model(specs.model), specs.model.seed)
    return [
        np.ascontiguousarray(vector[slice(*specs.store.routing.dense_range(shard))])
        for shard in range(specs.store.num_shards)
    ]


def _server_setups(specs: JobSpecs, secret: bytes) -> list[ServerSetup]:
    cluster, max_credits = specs.config.cluster, specs.coordinator.max_credits
    assert max_credits is not None, "it follows from the size of the buffers"
    # The mode may change, and with it what a step has.
    least = specs.coordinator.group_size + specs.coordinator.options.backup_batches
    return [
        ServerSetup(
            store=specs.store,
            index=index,
            secret=secret,
            # Attempts of workers that died may stay until their batch is resolved.
            max_contributions=2 * max_credits + 16,
            max_buffer_bytes=2 * cluster.buffer_bytes,
            always_buffered=least,
            max_reply_bytes=cluster.buffer_bytes // 4,
            compress=cluster.compress,
            any_float_mode=specs.config.training.mixed_cpus,
            dies_at_step=kill_step(
                specs.config, "server", index, first_step=specs.coordinator.start.step
            ),
        )
        for index in range(cluster.servers)
    ]


def _worker_setup(specs: JobSpecs, secret: bytes, processes: Processes) -> WorkerSetup:
    config = specs.config
    assert processes.coordinator_address is not None, "workers come after the coordinator"
    return WorkerSetup(
        store=specs.store,
        model=specs.model,
        data=specs.data,
        plan=specs.plan,
        evaluation_plan=specs.evaluation_plan,
        threads=config.cluster.worker_threads,
        depth=config.cluster.prefetch_batches,
        cache_bytes=config.data.cache_bytes,
        addresses=processes.addresses,
        coordinator=processes.coordinator_address,
        secret=secret,
        recovery_epoch=specs.coordinator.recovery_epoch,
        options=LoopOptions(
            on_non_finite=config.training.on_non_finite,
            any_float_mode=config.training.mixed_cpus,
        ),
        retry_seconds=config.cluster.retry_seconds,
        compress=config.cluster.compress,
        faults=worker_faults(config, started=time.time(), first_step=specs.coordinator.start.step),
    )
