"""One training job from its job file to its result: plan, launch, supervise, finish."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from embedding import rule_for
from ps.server.server import ServerSetup
from ps.spec import StoreSpec
from scheduler.coordinator.ledger import LedgerPlan
from scheduler.coordinator.modes.rules import rule_of
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.driver.beginning import Beginning, beginning_of
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.fault_plans import coordinator_faults, kill_step, worker_faults
from scheduler.driver.finish import finish
from scheduler.driver.launch import Launcher, Processes, start_ray
from scheduler.driver.remote import control_facts
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import TrainingError
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.paths import with_absolute_paths
from scheduler.job.specs import evaluation_data, model_spec, store_spec, training_data
from scheduler.run.directory import RunDirectory
from scheduler.run.metrics import reached
from scheduler.views.progress import Progress
from worker.contract import DataContract, check_kinds, check_same_kinds, kinds_of_features
from worker.data.advice import advice, shared_files
from worker.data.batch_size import keys_in_a_sample
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.errors import DataError
from worker.loop import LoopOptions
from worker.models import build_model, initial_parameters
from worker.running import WorkerSetup
from worker.spec import DataSpec, ModelSpec

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


@dataclass(frozen=True, slots=True)
class JobSpecs:
    """A job file resolved against its data: all that is known before Ray starts."""

    config: JobConfig
    data: DataSpec
    plan: Plan
    evaluation_plan: Plan | None
    model: ModelSpec
    store: StoreSpec
    coordinator: CoordinatorSpec
    beginning: Beginning = field(default_factory=Beginning)

    @property
    def contract(self) -> DataContract:
        """What decides keys and inputs beside the features, for those who go on from here."""
        found = kinds_of_features(self.data.features, self.plan.kinds)
        kinds = {name: each.kind for name, each in found.items()}
        return DataContract(keys={**self.beginning.keys, **kinds})


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
            TrainingError: the job failed while it ran.
        """
        self._reached("called")
        specs = resolve(self.config)
        rule = rule_for(specs.store.dense_optimizer, sparse=False)
        run = RunDirectory(
            self.config, least_checkpoint_bytes=4 * rule.row_width(specs.store.dense_size)
        )
        run.write_plan(specs.plan.to_json())
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


def resolve(config: JobConfig) -> JobSpecs:
    """Check a job against its files and its checkpoint, and derive every spec."""
    data = training_data(config)
    model = model_spec(config)
    store = store_spec(config, model)
    plan = make_plan(config.data.train, data)
    if plan.rows_per_epoch == 0:
        raise DataError(
            what="the training files hold no sample",
            file=", ".join(config.data.train),
            got=f"{len(plan.skipped_files)} files were left out" if plan.skipped_files else None,
            remedy="Check data.train",
        )
    for warning in advice(plan, data.features):
        _log.warning("%s", warning)
    evaluation_plan = None
    if config.data.eval is not None:
        evaluation_plan = make_plan(config.data.eval, evaluation_data(config))
        for warning in shared_files(plan, evaluation_plan):
            _log.warning("%s", warning)
    beginning = beginning_of(
        config, features=data.features, kinds=plan.kinds, model=model, store=store
    )
    if evaluation_plan is not None:
        check_same_kinds(data.features, evaluation_plan.kinds, plan.kinds)
        # Also where data.train has nothing but nulls.
        where = f"the checkpoint {beginning.checkpoint}"
        check_kinds(data.features, evaluation_plan.kinds, beginning.keys, where)
    coordinator = CoordinatorSpec(
        store=store,
        plan=_ledger_plan(plan, config.training.max_samples),
        evaluation_plan=None if evaluation_plan is None else _ledger_plan(evaluation_plan, None),
        mode="sync" if config.training.mode == "auto" else config.training.mode,
        start=beginning.start,
        shifts=tuple(config.training.shifts),
        automatic=config.training.mode == "auto",
        policy=config.training.auto,
        options=config.training.mode_options,
        group_size=config.group_size,
        global_batch=config.global_batch,
        workers=config.cluster.workers,
        depth=config.cluster.prefetch_batches,
        max_workers=config.max_workers,
        buffer_bytes=config.cluster.buffer_bytes,
        eval_every_steps=config.training.eval_every_steps,
        max_seconds=config.training.max_seconds,
        max_consecutive_non_finite=config.training.max_consecutive_non_finite,
        heartbeat_timeout_seconds=config.cluster.heartbeat_timeout_seconds,
        lease_timeout_seconds=config.cluster.lease_timeout_seconds,
        stall_seconds=config.cluster.stall_seconds,
        # Half of the limit. From when the coordinator is up: workers are placed and compile first.
        place_seconds=config.cluster.start_timeout_seconds / 2 + config.cluster.stall_seconds,
    )
    lengths = keys_in_a_sample(plan, data.features)
    batch_bytes = _contribution_bytes(config, store, model, lengths)
    max_credits = _max_credits(config, coordinator, batch_bytes)
    coordinator = replace(coordinator, max_credits=max_credits)
    return JobSpecs(config, data, plan, evaluation_plan, model, store, coordinator, beginning)


def _ledger_plan(plan: Plan, max_samples: int | None) -> LedgerPlan:
    limit = None
    if max_samples is not None:
        epochs, rest = divmod(max_samples, plan.rows_per_epoch)
        limit = epochs * plan.batches_per_epoch + math.ceil(rest / plan.batch_size)
    return LedgerPlan(
        batches_per_epoch=plan.batches_per_epoch,
        epochs=plan.epochs,
        rows_of=plan.rows_of,
        lanes=plan.lanes,
        limit=limit,
    )


def _contribution_bytes(
    config: JobConfig, store: StoreSpec, model: ModelSpec, lengths: Sequence[float]
) -> int:
    """Return about the most that one batch sends to all servers together.

    Args:
        lengths: keys of each sparse feature in a sample, on average.
    """
    per_sample = sum(
        lengths[lookup.feature] * (4 * part.dim + 13)
        for lookup in model.lookups
        for part in lookup.physical
    )
    return math.ceil(config.data.batch_size * per_sample) + 4 * store.dense_size


def _max_credits(config: JobConfig, coordinator: CoordinatorSpec, batch_bytes: int) -> int:
    """Return how many batches in flight the gradient buffers can hold.

    Raises:
        ConfigError: not even those of one step.
    """
    store = coordinator.store
    least = coordinator.step_batches(rule_of(coordinator.mode, coordinator.options))
    needed = least * batch_bytes // store.num_shards
    if needed > config.cluster.buffer_bytes:
        raise ConfigError(
            f"cluster.buffer_bytes is {config.cluster.buffer_bytes}, but the {least} batches of a"
            f" step need about {needed} bytes on each server. Raise it, add servers, or make"
            " training.global_batch or data.batch_size smaller"
        )
    return config.cluster.buffer_bytes * store.num_shards // batch_bytes


def _dense_parts(specs: JobSpecs) -> list[np.ndarray]:
    """The initial dense parameters, each shard's part."""
    vector = initial_parameters(build_model(specs.model), specs.model.seed)
    return [
        np.ascontiguousarray(vector[slice(*specs.store.dense_range(shard))])
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
