"""What each process of a job is told when it starts."""

import time
from collections.abc import Mapping

import numpy as np

from ps.net.sockets import Address
from ps.server.server import ServerSetup
from ps.spec import StoreSpec
from scheduler.coordinator.server import CoordinatorFaults
from scheduler.coordinator.shard_watch import server_lease_seconds
from scheduler.driver.fault_plans import (
    coordinator_faults,
    kill_step,
    worker_faults,
    yet_to_come,
)
from scheduler.driver.resolved import JobSpecs
from scheduler.job.specs import evaluation_data
from worker.loop import LoopOptions
from worker.models import build_model, initial_parameters
from worker.running import KernelSetup, WorkerSetup


class Setups:
    """The setups of one job; times of faults count from when this is made.

    Args:
        specs: of the job.
        secret: by which its processes know each other.
        reached: the step that the run has come to under other drivers; None: it begins.
    """

    def __init__(self, specs: JobSpecs, secret: bytes, *, reached: int | None = None) -> None:
        config = specs.config
        if reached is not None:
            config = yet_to_come(config, reached=reached, first_step=specs.coordinator.start.step)
        self._specs, self._config = specs, config
        self._secret = secret
        self._first_step = specs.coordinator.start.step
        self._started = time.time()
        self._initial = initial_parameters(build_model(specs.model), specs.model.seed)
        self._worker_faults = worker_faults(
            config, started=self._started, first_step=self._first_step
        )

    def server(
        self, index: int, incarnation: int = 0, *, store: StoreSpec | None = None
    ) -> ServerSetup:
        """Return what a server is told; each fault on purpose befalls one incarnation.

        Args:
            store: of which it is a server; None: of the job's as it is now.
        """
        specs = self._specs
        cluster, max_credits = self._config.cluster, specs.coordinator.max_credits
        assert max_credits is not None, "it follows from the size of the buffers"
        return ServerSetup(
            store=specs.store if store is None else store,
            tiers=specs.tiers,
            index=index,
            secret=self._secret,
            # Attempts of workers that died may stay until their batch is resolved.
            max_contributions=2 * max_credits + 16,
            max_buffer_bytes=2 * cluster.buffer_bytes,
            # The mode may change, and with it what a step has.
            always_buffered=specs.coordinator.group_size + specs.coordinator.options.backup_batches,
            max_reply_bytes=cluster.buffer_bytes // 4,
            compress=cluster.compress,
            lease_seconds=server_lease_seconds(cluster.server_timeout_seconds),
            any_float_mode=self._config.training.mixed_cpus,
            counts_loads=cluster.rebalance == "auto",
            dies_at_step=kill_step(
                self._config, "server", index, incarnation, first_step=self._first_step
            ),
        )

    def coordinator(self, incarnation: int = 0) -> CoordinatorFaults:
        """Return what befalls the coordinator on purpose."""
        return coordinator_faults(
            self._config,
            incarnation,
            started=self._started,
            first_step=self._first_step,
        )

    def worker_kernels(self) -> KernelSetup:
        """Return what workers are told while servers come up."""
        specs, config = self._specs, self._config
        return KernelSetup(
            store=specs.store,
            model=specs.model,
            features=specs.data.features,
            threads=config.cluster.worker_threads,
            any_float_mode=config.training.mixed_cpus,
            on_gpu=config.cluster.worker_gpus > 0,
        )

    def worker(
        self,
        *,
        addresses: tuple[Address, ...],
        standbys: Mapping[int, Address],
        coordinator: Address,
        relays: tuple[Address, ...] = (),
        recovery_epoch: int,
    ) -> WorkerSetup:
        """Return what every worker is told in a recovery epoch."""
        specs, config = self._specs, self._config
        return WorkerSetup(
            store=specs.store,
            model=specs.model,
            data=specs.data,
            plan=specs.plan,
            evaluation_plan=specs.evaluation_plan,
            evaluation_features=evaluation_data(config).features,
            grows=specs.coordinator.plan is None,
            threads=config.cluster.worker_threads,
            on_gpu=config.cluster.worker_gpus > 0,
            depth=config.cluster.prefetch_batches,
            cache_bytes=config.data.cache_bytes,
            addresses=addresses,
            standbys=standbys,
            coordinator=coordinator,
            relays=relays,
            secret=self._secret,
            recovery_epoch=recovery_epoch,
            options=LoopOptions(
                on_non_finite=config.training.on_non_finite,
                progressive=specs.coordinator.window_seconds is not None,
                any_float_mode=config.training.mixed_cpus,
                prepares_ahead=config.data.stream is None,
            ),
            retry_seconds=config.cluster.retry_seconds,
            compress=config.cluster.compress,
            faults=self._worker_faults,
            prefetched=frozenset(name for name, tiers in specs.tiers.items() if tiers.prefetch),
        )

    def dense_part(self, index: int) -> np.ndarray:
        """Return a server's part of the initial dense parameters."""
        first, last = self._specs.store.routing.dense_range(index)
        return np.ascontiguousarray(self._initial[first:last])
