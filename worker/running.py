"""From a setup to a running worker loop: everything a worker does, but for being a Ray actor."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ps.client.client import PsClient
from ps.client.deduplicate import Deduplicator
from ps.client.faults import with_faults
from ps.client.prefetcher import Prefetcher
from ps.copies import Copies
from ps.net.cancellation import Cancellation
from ps.net.sockets import Address, connect
from ps.spec import StoreSpec
from runtime.memory import keep_freed_memory
from worker.coordinator_client import CoordinatorClient
from worker.data.arrived_reading import ArrivedReader
from worker.data.batch import Bags, Batch
from worker.data.plan import Plan
from worker.data.reading import Reader
from worker.faults import FaultPlan, Faults
from worker.loop import LoopOptions, ReadBatch, WorkerLoop
from worker.protocol import TokenKind
from worker.session import Session
from worker.spec import DataSpec, FeatureSpec, Lookup, ModelSpec, SparseFeature
from worker.step.choosing import choose_rows
from worker.step.computing import Computation
from worker.step.preparing import Preparer
from worker.step.scoring import scores_of

# That a worker tries before it speaks to the coordinator itself.
_RELAYS_OF_A_WORKER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSetup:
    """What a worker is told before there is anything to connect to: see `WorkerSetup`."""

    store: StoreSpec
    model: ModelSpec
    features: FeatureSpec
    threads: int
    any_float_mode: bool
    on_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker is told when it starts.

    Args:
        store: tables and dense parameters.
        model: the dense model and its lookups.
        data: how training files become batches.
        plan, evaluation_plan: the batches.
        evaluation_features: the columns of the evaluation files; None: those of the data.
        grows: whether the training batches are those of a stream, and come with their tokens.
        threads: compute threads.
        on_gpu: whether the dense model computes on the GPU that Ray gives the worker.
        depth: batches prepared ahead, the one being computed included.
        cache_bytes: limit of decoded row groups.
        addresses: of the shards' primaries, in their order.
        standbys: the addresses of standbys, by shard.
        coordinator: its address.
        relays: that pass reports on to it.
        secret: that shards and coordinator ask for.
        recovery_epoch: that messages carry.
        options: of the loop.
        faults: that befall workers on purpose.
        retry_seconds: how long a shard or the coordinator may be out of reach.
        compress: whether frames are compressed.
        prefetched: names of tables some of which may be on disk, so that servers are told ahead
            what will be pulled of them.
    """

    store: StoreSpec
    model: ModelSpec
    data: DataSpec
    plan: Plan
    evaluation_plan: Plan | None
    grows: bool
    threads: int
    depth: int
    cache_bytes: int
    addresses: tuple[Address, ...]
    coordinator: Address
    secret: bytes = field(repr=False)
    recovery_epoch: int
    options: LoopOptions
    faults: FaultPlan
    retry_seconds: float = 20.0
    compress: bool = False
    standbys: Mapping[int, Address] = field(default_factory=dict)
    relays: tuple[Address, ...] = ()
    prefetched: frozenset[str] = frozenset()
    evaluation_features: FeatureSpec | None = None
    on_gpu: bool = False

    @property
    def kernels(self) -> "KernelSetup":
        """What its kernels depend on."""
        return KernelSetup(
            store=self.store,
            model=self.model,
            features=self.data.features,
            threads=self.threads,
            any_float_mode=self.options.any_float_mode,
            on_gpu=self.on_gpu,
        )

    def relays_of(self, worker: int) -> list[Address]:
        """Return the relays that a worker reports to, the first of them as long as it can."""
        count = len(self.relays)
        return [self.relays[(worker + n) % count] for n in range(min(count, _RELAYS_OF_A_WORKER))]


def make_loop(
    setup: WorkerSetup,
    *,
    worker: int,
    incarnation: int,
    node_id: str,
    cancellation: Cancellation | None = None,
) -> WorkerLoop:
    """Compile the kernels, connect to the shards and return a loop that is ready to run.

    Raises:
        CancelledError: it was cancelled meanwhile.
    """
    name = f"worker {worker} incarnation {incarnation}"
    copies = Copies(setup.store.num_shards, tuple(sorted(setup.standbys)))
    places = dict(enumerate(setup.addresses))
    places |= {copies.standby_of(shard): place for shard, place in setup.standbys.items()}
    preparer, computation = with_kernels(setup.kernels)

    def to_shard(number: int) -> socket.socket:
        return connect(
            places[number],
            node_id=node_id,
            secret=setup.secret,
            name=name,
            cancellation=cancellation,
        )

    client = PsClient(
        setup.store,
        with_faults(
            to_shard,
            setup.faults.connections,
            process=(0, worker, incarnation),  # the coordinator has 1 first, the prefetcher 2
        ),
        recovery_epoch=setup.recovery_epoch,
        standbys=copies.standbys,
        retry_seconds=setup.retry_seconds,
        compress=setup.compress,
        cancellation=cancellation,
    )

    def way_to(address: Address) -> Callable[[], socket.socket]:
        return partial(
            connect,
            address,
            node_id=node_id,
            secret=setup.secret,
            name=name,
            cancellation=cancellation,
        )

    prefetcher = None
    if setup.prefetched:
        prefetcher = Prefetcher(
            with_faults(to_shard, setup.faults.connections, process=(2, worker, incarnation)),
            routing=setup.store.routing,
            copies=copies,
            tables=[table.name in setup.prefetched for table in setup.store.tables],
            recovery_epoch=setup.recovery_epoch,
        )
    arrived = ArrivedReader(
        setup.data.features,
        on_bad_file=setup.data.on_bad_file,
        cache_bytes=setup.cache_bytes,
    )
    readers: dict[TokenKind, ReadBatch] = {
        "train": arrived.read
        if setup.grows
        else _reader(setup, setup.plan, setup.data.features, once=True)
    }
    if setup.evaluation_plan is not None:
        features = setup.evaluation_features or setup.data.features
        readers["eval"] = _reader(setup, setup.evaluation_plan, features, once=False)
    return WorkerLoop(
        session=Session(
            worker, incarnation, depth=setup.depth, recovery_epoch=setup.recovery_epoch
        ),
        coordinator=CoordinatorClient(
            way_to(setup.coordinator),
            retry_seconds=setup.retry_seconds,
            relays=[way_to(relay) for relay in setup.relays_of(worker)],
            cancellation=cancellation,
        ),
        client=client,
        readers=readers,
        rows_granted=arrived.add,
        preparer=preparer,
        computation=computation,
        options=setup.options,
        faults=Faults(setup.faults, worker=worker, incarnation=incarnation),
        cancellation=cancellation,
        prefetcher=prefetcher,
    )


def with_kernels(setup: KernelSetup) -> tuple[Preparer, Computation]:
    """Return what prepares batches and what computes them, with kernels compiled (or loaded)."""
    if setup.model.type == "torch":
        keep_freed_memory()  # what a module makes of a batch is new memory each time
    computation = Computation(
        setup.model,
        threads=setup.threads,
        any_float_mode=setup.any_float_mode,
        on_gpu=setup.on_gpu,
    )
    preparer = make_preparer(setup.store, setup.model.lookups, setup.features.sparse)
    warm_up(setup.features, setup.model, setup.store, preparer, computation)
    return preparer, computation


def warm_up(
    features: FeatureSpec,
    model: ModelSpec,
    store: StoreSpec,
    preparer: Preparer,
    computation: Computation,
) -> None:
    """Compile (or load) the worker's kernels on samples with one key and with a bag of keys."""
    keys = np.array([1, 2], np.int64)
    keys.flags.writeable = False
    offsets = np.array([0, 1, 2], np.int64)
    weights = np.ones(2, np.float32)
    for ragged in (False, True):
        sparse = tuple(
            Bags(keys, offsets if ragged else None, weights if f.weights else None)
            for f in features.sparse
        )
        dense = np.zeros((2, len(features.dense)), np.float32)
        weighed = None if features.weight is None else weights
        labels = np.zeros(model.logits_shape(2), np.float32)
        labels[1] = 1
        batch = Batch(labels, dense, sparse, weighed)
        prepared = preparer(batch)
        prepared, _ = choose_rows(prepared, np.ones(prepared.unique.keys.size, np.uint8))
        values = np.zeros(prepared.unique.value_starts[-1], np.float32)
        parameters = np.zeros(store.dense_size, np.float32)
        computation.train(prepared, values, parameters)
        logits = computation.predict(prepared, values, parameters)
        scores_of(logits, prepared)


def make_preparer(
    store: StoreSpec, lookups: Sequence[Lookup], sparse: Sequence[SparseFeature]
) -> Preparer:
    """Return what prepares the batches of a job, sliced for its shards."""
    return Preparer(
        tables=[table.name for table in store.tables],
        sparse=sparse,
        lookups=lookups,
        deduplicator=Deduplicator([table.dim for table in store.tables], store.routing),
    )


def _reader(setup: WorkerSetup, plan: Plan, features: FeatureSpec, *, once: bool) -> ReadBatch:
    return Reader(
        plan,
        replace(features, segment=None),  # only a stream's samples are scored by segment
        on_bad_file=setup.data.on_bad_file,
        cache_bytes=setup.cache_bytes,
        once=once,
    ).read
