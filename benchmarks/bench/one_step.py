"""A worker's step on one thread, one thing after another: what its CPU time consists of."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from bench.shard_process import client_of, start_shards
from embedding.kernels.finite import all_finite
from ps.client.client import Identity, Open, PsClient, PulledBatch
from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Entry, Record
from scheduler.coordinator.step_scalars import scalars_of_step
from scheduler.driver.resolved import JobSpecs
from worker.data.batch import Batch
from worker.data.reading import Reader
from worker.models import build_model, initial_parameters
from worker.running import make_preparer
from worker.spec import ModelSpec, SparseFeature
from worker.step.choosing import choose_rows
from worker.step.computing import Computation
from worker.step.preparing import Prepared

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of a batch: its pull and push, the gradients of its rows and dense parameters."""

    prepared: Prepared
    push: Open
    pulled: PulledBatch
    gradients: Float32Array
    dense: Float32Array

    @property
    def samples(self) -> int:
        return self.prepared.num_samples


class Contributor:
    """Computes batches and pushes what they contribute to the servers.

    Args:
        client: connected to the servers.
        model, sparse: of the job.
    """

    def __init__(self, client: PsClient, model: ModelSpec, sparse: Sequence[SparseFeature]) -> None:
        self.client = client
        self._computation = Computation(model)
        self._preparer = make_preparer(client.spec, model.lookups, sparse)

    def push(self, number: int, batch: Batch) -> Pushed:
        """Pull, train and push a batch; return what was pushed once every shard holds it."""
        prepared = self._preparer(batch)
        pulled = self.client.start_pull(prepared.unique, at_step=ANY_STEP)
        wait_for(self.client, [pulled])
        prepared, trained = choose_rows(prepared, pulled.admitted)
        _, gradients, dense = self._computation.train(prepared, pulled.values, pulled.dense)
        if not (all_finite(gradients) and all_finite(dense)):
            raise ValueError(f"batch {number} gave a gradient that is not finite")
        identity = Identity(0, number, 0, prepared.num_samples)
        push = self.client.start_push(
            pulled, identity, gradients=gradients, dense=dense, trained=trained
        )
        wait_for(self.client, [push])
        return Pushed(prepared, push, pulled, gradients, dense)

    def give_back(self, pushed: Pushed) -> None:
        """Use the arrays of a batch again; nothing may read them any more."""
        self._computation.give_back(pushed.gradients, pushed.dense)
        self._preparer.give_back(pushed.prepared)
        self.client.release(pushed.push)
        self.client.release(pushed.pulled)


def apply_batch(
    client: PsClient, *, step: int, batch_id: int, samples: int, low_water: int
) -> None:
    """Make a step of a pushed batch on every shard, as the coordinator does in `async`.

    Args:
        low_water: every batch id below it was applied before.
    """
    store = client.spec
    record = Record(
        step=step,
        recovery_epoch=client.recovery_epoch,
        mode_epoch=0,
        entries=(Entry(batch_id, 0, 1.0),),
        divisor=samples,
        scalars=scalars_of_step(store, step=step, clock=step, learning_rate_scale=1.0),
        clock=step,
        low_water=low_water,
        oldest_pull_step=step,
        applied_step=step,
    )
    wait_for(client, [client.start_apply(shard, [record]) for shard in range(store.num_shards)])


def wait_for(client: PsClient, requests: Sequence[Open]) -> None:
    """Wait until all are answered; raises RuntimeError where one is refused."""
    while not all(request.done for request in requests):
        client.poll(None)
    for request in requests:
        for refusal in request.refusals.values():
            raise RuntimeError(refusal.text)


class OneWorker:
    """Trains a job's batches in order, each a step, with servers in processes of their own.

    No coordinator, no Ray, no threads: nothing overlaps, and no time of others is measured.

    Example:
        with OneWorker(specs) as worker:
            for number in range(10):
                worker.step(number)
    """

    def __init__(self, specs: JobSpecs) -> None:
        store = specs.store
        epoch = specs.coordinator.recovery_epoch
        self._reader = Reader(specs.plan, specs.data.features)
        secret = secrets.token_bytes(32)
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        self.shards = start_shards(
            store,
            dense,
            secret=secret,
            recovery_epoch=epoch,
            max_contributions=4,
            max_buffer_bytes=1 << 30,
        )
        addresses = [shard.address for shard in self.shards]
        client = client_of(store, addresses, secret=secret, recovery_epoch=epoch)
        self._contributor = Contributor(client, specs.model, specs.data.features.sparse)

    def __enter__(self) -> "OneWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._contributor.client.close()
        for shard in self.shards:
            shard.close()

    def step(self, number: int) -> Pushed:
        """Train a batch from its file to the applied gradient; they count from 0, without gaps."""
        batch, _ = self._reader.read(number)
        pushed = self._contributor.push(number, batch)
        apply_batch(
            self._contributor.client,
            step=number,
            batch_id=number,
            samples=pushed.samples,
            low_water=number,
        )
        return pushed

    def give_back(self, pushed: Pushed) -> None:
        """Use the arrays of a batch again, as workers do; nothing may read them any more."""
        self._contributor.give_back(pushed)
