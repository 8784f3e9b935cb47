"""A worker's step on one thread, one thing after another: what its CPU time consists of."""

import secrets
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from bench.shard_process import NODE, ShardProcess
from embedding.finite import all_finite
from ps.client import Identity, Open, PsClient, PulledBatch
from ps.messages import ANY_STEP, Entry, Record
from ps.server import ServerSetup
from ps.sockets import connect
from scheduler.step_scalars import scalars_of_step
from scheduler.trainer import JobSpecs
from worker.choosing import choose_rows
from worker.computing import Computation
from worker.models import build_model, initial_parameters
from worker.reading import Reader
from worker.running import make_preparer

Float32Array = npt.NDArray[np.float32]


class OneWorker:
    """Trains a job's batches in order, each a step, with servers in processes of their own.

    No coordinator, no Ray, no threads: nothing overlaps, and no time of others is measured.

    Example:
        with OneWorker(specs) as worker:
            for number in range(10):
                worker.step(number)
    """

    def __init__(self, specs: JobSpecs) -> None:
        self._specs, store = specs, specs.store
        self._epoch = specs.coordinator.recovery_epoch
        self._computation = Computation(specs.model)
        self._reader = Reader(specs.plan, specs.data.features)
        self._preparer = make_preparer(store, specs.model.lookups, specs.data.features.sparse)
        secret = secrets.token_bytes(32)
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        self.shards: list[ShardProcess] = []
        for index in range(store.num_shards):
            setup = ServerSetup(
                store=store,
                index=index,
                secret=secret,
                max_contributions=4,
                max_buffer_bytes=1 << 30,
            )
            part = np.ascontiguousarray(dense[slice(*store.dense_range(index))])
            self.shards.append(ShardProcess(setup, part, recovery_epoch=self._epoch))
        self._client = PsClient(
            store,
            lambda shard: connect(self.shards[shard].address, node_id=NODE, secret=secret),
            recovery_epoch=self._epoch,
        )

    def __enter__(self) -> "OneWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        for shard in self.shards:
            shard.close()

    def step(self, number: int) -> tuple[PulledBatch, Float32Array, Float32Array]:
        """Train a batch from its file to the applied gradient; they count from 0, without gaps.

        Returns what was pulled, and the gradients of its rows and of the dense parameters; the
        gradients are overwritten by the next step.
        """
        batch, _ = self._reader.read(number)
        prepared = self._preparer(batch)
        pulled = self._client.start_pull(prepared.unique, at_step=ANY_STEP)
        self._wait_for([pulled])
        prepared, trained = choose_rows(prepared, pulled.admitted)
        _, gradients, dense = self._computation.train(prepared, pulled.values, pulled.dense)
        if not (all_finite(gradients) and all_finite(dense)):
            raise ValueError(f"batch {number} gave a gradient that is not finite")
        identity = Identity(0, number, 0, prepared.num_samples)
        push = self._client.start_push(
            pulled, identity, gradients=gradients, dense=dense, trained=trained
        )
        self._wait_for([push])
        store = self._specs.store
        record = Record(
            step=number,
            recovery_epoch=self._epoch,
            mode_epoch=0,
            entries=(Entry(number, 0, 1.0),),
            divisor=prepared.num_samples,
            scalars=scalars_of_step(store, step=number, clock=number, learning_rate_scale=1.0),
            clock=number,
            low_water=number,
            oldest_pull_step=number,
        )
        self._wait_for(
            [self._client.start_apply(shard, [record]) for shard in range(store.num_shards)]
        )
        return pulled, gradients, dense

    def _wait_for(self, requests: Sequence[Open]) -> None:
        while not all(request.done for request in requests):
            self._client.poll(None)
        for request in requests:
            for refusal in request.refusals.values():
                raise RuntimeError(refusal.text)
