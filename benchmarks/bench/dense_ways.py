"""Ways in which workers make synchronous steps of dense parameters together, and nothing else.

Gradients are made up and tables have no keys, so a step is what carrying takes, and what servers
apply. All ways sum a step's gradients in the order of its batches, and so give the same bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from embedding.spec.optimizers import AdamAsync
from embedding.spec.table import TableSpec
from ps.client.client import Identity, Open, PsClient, PulledBatch
from ps.client.deduplicate import Deduplicated, Deduplicator
from ps.messages.records import Entry, Record
from ps.net.sockets import Address, connect
from ps.spec import StoreSpec
from scheduler.coordinator.step_scalars import scalars_of_step

Way = Literal["servers", "pulled_once", "all_reduce", "replicas"]
WAYS: tuple[Way, ...] = ("servers", "pulled_once", "all_reduce", "replicas")
EPOCH = 1
SAMPLES = 1024
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is measured.

    Args:
        way: `servers`: every batch is pushed whole, every worker pulls all, as jobs do;
            `pulled_once`: each worker pulls a slice of the parameters, and they gather the others';
            `all_reduce`: each worker sums a slice of the gradients, pushes the sum, and pulls that
            slice of the parameters, which all gather; `replicas`: the sums are gathered, and
            workers would apply them themselves; servers have them a step later.
        workers, servers, batches: of a step; batches are a multiple of workers.
        dense: parameters.
    """

    way: Way
    workers: int
    servers: int
    batches: int
    dense: int

    @property
    def slice_size(self) -> int:
        """Parameters of one worker's slice; the last one is padded."""
        return -(-self.dense // self.workers)

    def stores(self) -> list[StoreSpec]:
        """Return what servers hold: of all parameters together, and of each worker's slice."""
        whole = [] if self.way in ("all_reduce", "replicas") else [_store(self.dense, self.servers)]
        if self.way == "servers":
            return whole
        return whole + [_store(self.slice_size, self.servers)] * self.workers

    def entries(self, step: int) -> list[tuple[Entry, ...]]:
        """Return for each store what a step's record names."""
        batches = range(step * self.batches, (step + 1) * self.batches)
        all_of_them = tuple(Entry(batch, 0, 1.0) for batch in batches)
        one = (Entry(step, 0, 1.0),)
        if self.way == "servers":
            return [all_of_them]
        if self.way == "pulled_once":
            return [all_of_them, *[()] * self.workers]
        return [one] * self.workers


def _store(dense: int, servers: int) -> StoreSpec:
    return StoreSpec(
        tables=(TableSpec(name="none", dim=4),),
        dense_size=dense,
        dense_optimizer=AdamAsync(learning_rate=0.001),
        num_shards=servers,
    )


class Servers:
    """One end of connections to the servers of one store."""

    def __init__(
        self, store: StoreSpec, addresses: Sequence[Address], *, node: str, secret: bytes
    ) -> None:
        self.client = PsClient(
            store,
            lambda shard: connect(addresses[shard], node_id=node, secret=secret),
            recovery_epoch=EPOCH,
        )
        keys = np.empty(0, np.int64)
        self._nothing: Deduplicated = Deduplicator([4], store.routing)(keys, np.zeros(2, np.int64))

    def pull(self, step: int, *, dense: bool = True) -> PulledBatch:
        """Ask for the parameters of a step, which is waited for."""
        return self.client.start_pull(self._nothing, at_step=step, dense=dense)

    def push(
        self, pulled: PulledBatch, batch: int, gradient: Float32s, *, samples: int = SAMPLES
    ) -> Open:
        """Send a batch's gradient, or a sum of several."""
        return self.client.start_push(
            pulled,
            Identity(0, batch, 0, samples),
            gradients=np.empty(0, np.float32),
            dense=gradient,
        )

    def apply(self, step: int, entries: tuple[Entry, ...], *, samples: int) -> list[Open]:
        """Have every server make a step of so many samples."""
        store = self.client.spec
        record = Record(
            step=step,
            recovery_epoch=EPOCH,
            mode_epoch=0,
            entries=entries,
            divisor=samples if entries else 0,
            scalars=scalars_of_step(store, step=step, clock=step, learning_rate_scale=1.0),
            clock=step,
            low_water=max((entry.batch_id + 1 for entry in entries), default=0),
            oldest_pull_step=step,
            applied_step=step,
        )
        return [self.client.start_apply(shard, [record]) for shard in range(store.num_shards)]

    def wait(self, *requests: Open) -> None:
        """Wait until all are answered; raises RuntimeError where one is refused."""
        while not all(request.done for request in requests):
            self.client.poll(None)
        for request in requests:
            for refusal in request.refusals.values():
                raise RuntimeError(refusal.text)


class Worker:
    """One worker; the gradients of its batches are the same in every step.

    Args:
        rank: its number.
        whole, slices: the servers of all parameters, and those of its slice, where there are any.
    """

    def __init__(
        self, fleet: Fleet, rank: int, whole: Servers | None, slices: Servers | None
    ) -> None:
        self._fleet, self._rank = fleet, rank
        self._whole, self._slices = whole, slices
        self._numbers = range(rank, fleet.batches, fleet.workers)
        self._gradients = {number: _gradient(fleet, number) for number in self._numbers}
        self._gathered = np.zeros(fleet.slice_size * fleet.workers, np.float32)
        self._received = np.empty_like(self._gathered)
        self._sum = np.empty(fleet.slice_size, np.float32)

    def step(self, step: int) -> None:
        """Get the parameters of a step and give all that it needs of this worker."""
        if self._fleet.way == "servers":
            self._by_servers(step)
        elif self._fleet.way == "pulled_once":
            self._pulled_once(step)
        else:
            self._reduced(step)

    def digest(self, step: int) -> str:
        """Return that of the parameters, at a step that is reached."""
        if self._whole is not None:
            pulled = self._whole.pull(step)
            self._whole.wait(pulled)
            parameters = pulled.dense
        else:
            self._gather(self._pull_slice(step).dense)
            parameters = self._gathered[: self._fleet.dense]
        return hashlib.sha256(np.ascontiguousarray(parameters)).hexdigest()[:16]

    def _by_servers(self, step: int) -> None:
        assert self._whole is not None
        pulled = self._whole.pull(step)
        self._whole.wait(pulled)
        self._push_all(self._whole, pulled, step)

    def _pulled_once(self, step: int) -> None:
        assert self._whole is not None
        rows = self._whole.pull(step, dense=False)
        self._gather(self._pull_slice(step).dense)
        self._whole.wait(rows)
        self._push_all(self._whole, rows, step)

    def _reduced(self, step: int) -> None:
        assert self._slices is not None
        pulled = self._pull_slice(step, dense=self._fleet.way == "all_reduce")
        if self._fleet.way == "all_reduce":
            self._gather(pulled.dense)
        total = self._summed_slice()
        samples = SAMPLES * self._fleet.batches
        push = self._slices.push(pulled, step, total, samples=samples)
        if self._fleet.way == "replicas":
            self._gather(total)
        self._slices.wait(push)

    def _push_all(self, servers: Servers, pulled: PulledBatch, step: int) -> None:
        first = step * self._fleet.batches
        pushes = [
            servers.push(pulled, first + number, self._gradients[number])
            for number in self._numbers
        ]
        servers.wait(*pushes)

    def _pull_slice(self, step: int, *, dense: bool = True) -> PulledBatch:
        assert self._slices is not None
        pulled = self._slices.pull(step, dense=dense)
        self._slices.wait(pulled)
        return pulled

    def _gather(self, own: Float32s) -> None:
        import torch
        import torch.distributed as dist

        dist.all_gather_single(torch.from_numpy(self._gathered), torch.from_numpy(own))

    def _summed_slice(self) -> Float32s:
        """Sum this worker's slice of all gradients of a step, in the order of the batches."""
        import torch
        import torch.distributed as dist

        size = self._fleet.slice_size
        total, received = self._sum, self._received
        total[:] = -0.0  # which added to anything changes no bit of it
        for number in self._numbers:
            sent = torch.from_numpy(self._gradients[number])
            dist.all_to_all_single(torch.from_numpy(received), sent)
            for part in received.reshape(self._fleet.workers, size):
                total += part
        return total


def _gradient(fleet: Fleet, number: int) -> Float32s:
    """Return a batch's gradient; where it is sent in slices, with zeros that fill the last one."""
    gradient = np.random.default_rng(number).normal(size=fleet.dense).astype(np.float32)
    if fleet.way in ("servers", "pulled_once"):
        return gradient
    return np.pad(gradient, (0, fleet.slice_size * fleet.workers - fleet.dense))
