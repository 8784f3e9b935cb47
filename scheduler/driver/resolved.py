"""A job file resolved against its data: all that is known before Ray starts."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from embedding.spec.tiers import Tiers
from ps.routing import Routing
from ps.spec import StoreSpec
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.modes.rules import rule_of
from scheduler.coordinator.spec import CoordinatorSpec, CutOptions
from scheduler.driver.beginning import Beginning, beginning_before, beginning_of
from scheduler.driver.launch import starts_ray
from scheduler.driver.tier_paths import check_tiers
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.specs import (
    evaluation_data,
    model_spec,
    store_spec,
    table_tiers,
    training_data,
)
from scheduler.job.streams import begin_stream
from scheduler.run.earlier import EarlierRun
from worker.contract import DataContract, check_kinds, check_same_kinds, kinds_of_features
from worker.data.advice import advice, shared_files
from worker.data.batch_size import keys_in_a_sample
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.data.streams import Position
from worker.errors import DataError
from worker.grouped_auc import check_grouped
from worker.spec import DataSpec, ModelSpec

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class JobSpecs:
    """A job file resolved against its data: all that is known before Ray starts.

    Of a stream `plan` is that of its first file, and `stream_begins` where the job begins in it.
    Where the number of servers changes, `store` and `coordinator` do; nothing else ever does.
    `batch_bytes` is about the most that one batch sends to all servers together. `tiers` says of
    tables, by name, where values are that memory is not to hold.
    """

    config: JobConfig
    data: DataSpec
    plan: Plan
    evaluation_plan: Plan | None
    model: ModelSpec
    store: StoreSpec
    coordinator: CoordinatorSpec
    beginning: Beginning = field(default_factory=Beginning)
    stream_begins: Position = field(default_factory=dict)
    batch_bytes: int = 0
    tiers: dict[str, Tiers] = field(default_factory=dict)

    def with_routing(self, routing: Routing) -> "JobSpecs":
        """Return the specs of the job with other servers.

        Raises:
            ConfigError: their buffers can't hold the batches of a step.
        """
        store = replace(self.store, num_shards=routing.num_shards, uneven=routing)
        coordinator = replace(self.coordinator, store=store)
        most = _max_credits(self.config, coordinator, self.batch_bytes)
        # Servers that stay were made for so many.
        known = self.coordinator.max_credits
        coordinator = replace(coordinator, max_credits=most if known is None else min(known, most))
        return replace(self, store=store, coordinator=coordinator)

    def go_by(self, routing: Routing) -> None:
        """Be the specs of the job with other servers, see `with_routing`."""
        other = self.with_routing(routing)
        self.store, self.coordinator = other.store, other.coordinator

    @property
    def contract(self) -> DataContract:
        """What decides keys and inputs beside the features, for those who go on from here."""
        found = kinds_of_features(self.data.features, self.plan.kinds)
        kinds = {name: each.kind for name, each in found.items()}
        return DataContract(keys={**self.beginning.keys, **kinds})


def resolve(config: JobConfig, earlier: EarlierRun | None = None) -> JobSpecs:
    """Check a job against its files and its checkpoint, and derive every spec.

    Args:
        earlier: a run that it goes on with: its data and its beginning are those of that.
    """
    data = training_data(config)
    model = model_spec(config)
    if config.cluster.worker_gpus:
        _look_for_gpus()
    store = store_spec(config, model)
    tiers = table_tiers(config, model)
    check_tiers(tiers, store.tables)
    plan = None if earlier is None else earlier.plan
    stream_begins: Position = {}
    if plan is None and config.data.stream is not None:
        plan, stream_begins = begin_stream(config, data)
    if plan is None:
        plan = make_plan(config.data.train or (), data)
    if plan.rows_per_epoch == 0 and config.data.stream is None:
        raise DataError(
            what="the training files hold no sample",
            file=", ".join(config.data.train or ()),
            got=f"{len(plan.skipped_files)} files were left out" if plan.skipped_files else None,
            remedy="Check data.train",
        )
    for warning in advice(plan, data.features):
        _log.warning("%s", warning)
    evaluation_plan = None if earlier is None else earlier.evaluation_plan
    if config.data.eval is not None:
        if evaluation_plan is None:
            evaluation_plan = make_plan(config.data.eval, evaluation_data(config))
        for warning in shared_files(plan, evaluation_plan):
            _log.warning("%s", warning)
    if earlier is not None and earlier.cut is not None:
        beginning = beginning_before(earlier.cut, store)
    else:
        beginning = beginning_of(
            config, features=data.features, kinds=plan.kinds, model=model, store=store
        )
    if evaluation_plan is not None:
        if config.data.eval_group_by is not None:
            try:
                check_grouped(evaluation_plan.rows_per_epoch, len(model.tasks))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        check_same_kinds(data.features, evaluation_plan.kinds, plan.kinds)
        # Also where data.train has nothing but nulls.
        where = f"the checkpoint {beginning.checkpoint}"
        check_kinds(data.features, evaluation_plan.kinds, beginning.keys, where)
    segment = config.training.online.segment
    mode = config.training.mode
    may_be_stale = mode in ("gba", "auto")
    settles = may_be_stale and config.training.begin_in_sync and beginning.start.step == 0
    coordinator = CoordinatorSpec(
        store=store,
        plan=(
            None
            if config.data.stream is not None
            else _ledger_plan(plan, config.training.max_samples)
        ),
        evaluation_plan=None if evaluation_plan is None else _ledger_plan(evaluation_plan, None),
        mode="sync" if mode == "auto" or settles else mode,
        settles=settles,
        start=beginning.start,
        shifts=tuple(config.training.shifts),
        automatic=mode == "auto",
        policy=config.training.auto,
        options=config.training.mode_options,
        group_size=config.group_size,
        global_batch=config.global_batch,
        workers=config.cluster.workers,
        depth=config.cluster.prefetch_batches,
        workers_automatic=config.cluster.autoscale,
        max_workers=config.max_workers,
        buffer_bytes=config.cluster.buffer_bytes,
        cuts=CutOptions(
            every_steps=config.checkpoint.every_steps,
            every_seconds=config.checkpoint.every_seconds,
            full_every=config.checkpoint.full_every,
        ),
        eval_every_steps=config.training.eval_every_steps,
        window_seconds=(
            config.training.online.window_seconds
            if config.data.stream is not None and config.training.online.evaluate != "none"
            else None
        ),
        weighted=data.features.weight is not None,
        segments=0 if segment is None else segment.most,
        tasks=model.tasks,
        grouped=config.data.eval_group_by is not None,
        max_seconds=config.training.max_seconds,
        max_consecutive_non_finite=config.training.max_consecutive_non_finite,
        heartbeat_timeout_seconds=config.cluster.heartbeat_timeout_seconds,
        lease_timeout_seconds=config.cluster.lease_timeout_seconds,
        server_timeout_seconds=config.cluster.server_timeout_seconds,
        stall_seconds=config.cluster.stall_seconds,
        # Half of the limit. From when the coordinator is up: workers are placed and compile first.
        place_seconds=config.cluster.start_timeout_seconds / 2 + config.cluster.stall_seconds,
    )
    lengths = keys_in_a_sample(plan, data.features)
    batch_bytes = _contribution_bytes(config, store, model, lengths)
    max_credits = _max_credits(config, coordinator, batch_bytes)
    coordinator = replace(coordinator, max_credits=max_credits)
    return JobSpecs(
        config, data, plan, evaluation_plan, model, store, coordinator, beginning, stream_begins,
        batch_bytes, tiers,
    )  # fmt: skip


def _look_for_gpus() -> None:
    """Refuse GPUs where it is known that workers can't use one; warn where it seems so.

    Where a cluster is joined, workers are on other machines.
    """
    from worker.models.torch.gpu import NoGpuError, require_build, visible_gpus

    try:
        require_build()
    except NoGpuError as error:
        if starts_ray():
            raise ConfigError(str(error)) from error
        _log.warning("%s: so it is here, and workers need such a build where they are", error)
        return
    if starts_ray() and not visible_gpus():
        _log.warning(
            "cluster.worker_gpus: torch sees no GPU on this machine, and RAY_ADDRESS names no"
            " cluster that has some: training would not begin"
        )


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
