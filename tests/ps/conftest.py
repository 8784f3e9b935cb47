"""A whole job's shards in one process, and messages to them as a worker builds them."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.optimizers.rule import step_scalars
from embedding.spec.admission import CounterAdmission
from embedding.spec.optimizers import Adagrad, AdamAsync, Optimizer, Sgd
from embedding.spec.table import TableSpec
from ps.checkpoint.digest import block_digests, digests_of_shard, shards_digest
from ps.checkpoint.manifest import Manifest, write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import start_shard_from
from ps.checkpoint.write import write_shard
from ps.client.client import Identity, Open, PsClient, PulledBatch
from ps.client.deduplicate import Deduplicated, Deduplicator, keep_admitted
from ps.messages.exchange import Reply
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.messages.records import Apply, Entry, Record
from ps.net import sockets
from ps.net.sockets import Address, connect
from ps.routing import Routing
from ps.server.data_plane import DataPlane
from ps.server.read_write_lock import ReadWriteLock
from ps.shard.shard import Shard
from ps.spec import SparseMean, StoreSpec

EPOCH = 3


class SmallJob:
    """Shards of a job that were initialised, without sockets.

    Keys are given as one list for each table; everything that a worker would compute is made up
    from a seed, so that the same calls give the same bytes for any number of shards.
    """

    epoch = EPOCH

    def __init__(
        self,
        tables: Sequence[TableSpec],
        *,
        num_shards: int = 1,
        dense_size: int = 3,
        dense_optimizer: Optimizer | None = None,
        sparse_mean: SparseMean = "global",
        uneven: Routing | None = None,
        initialize: bool = True,
        **limits: int,
    ) -> None:
        self.spec = StoreSpec(
            tables=tuple(tables),
            dense_size=dense_size,
            dense_optimizer=dense_optimizer or Adagrad(),
            num_shards=num_shards,
            sparse_mean=sparse_mean,
            uneven=uneven,
        )
        self.dims = np.array([table.dim for table in tables], np.int64)
        self.deduplicate = Deduplicator(self.dims.tolist(), self.spec.routing)
        self.shards = [Shard(self.spec, index, **limits) for index in range(num_shards)]
        if initialize:
            values = np.random.default_rng(0).normal(size=dense_size).astype(np.float32)
            for shard in self.shards:
                part = slice(*self.spec.routing.dense_range(shard.index))
                shard.initialize(EPOCH, dense=values[part])

    def unique(self, *keys: Sequence[int]) -> Deduplicated:
        flat = np.array([key for table in keys for key in table], np.int64)
        starts = np.cumsum([0, *(len(table) for table in keys)])
        return self.deduplicate(flat, starts)

    # Messages ---------------------------------------------------------------------------------

    def pull(
        self, shard: int, unique: Deduplicated, *, counts: bool = True, **changes: Any
    ) -> Pull:
        part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
        fields: dict[str, Any] = {
            "request_id": 1,
            "recovery_epoch": EPOCH,
            "routing_version": self.spec.routing.version,
            "at_step": ANY_STEP,
            "table_sizes": tuple(unique.sizes[shard].tolist()),
            "keys": unique.keys[part],
            "counts": unique.counts[part] if counts else np.empty(0, np.uint32),
            "dense": True,
        }
        return Pull(**{**fields, **changes})

    def contribution(
        self,
        shard: int,
        unique: Deduplicated,
        *,
        admitted: np.ndarray | None = None,
        gradients: np.ndarray | None = None,
        batch_id: int = 0,
        pull_step: int | None = None,
        **changes: Any,
    ) -> Contribution:
        """One shard's part of a batch's contribution.

        Args:
            admitted: uint8[u] of the whole batch; None: all are.
            gradients: float32 of the whole batch, laid out as its rows; None: made from batch_id.
        """
        rng = np.random.default_rng(batch_id + 10)
        if gradients is None:
            gradients = self._gradients(unique, rng)
        dense = rng.normal(size=self.spec.dense_size).astype(np.float32)
        part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
        values = slice(unique.value_starts[shard], unique.value_starts[shard + 1])
        bits = np.ones(unique.keys.size, np.uint8) if admitted is None else admitted
        sizes = unique.sizes[shard]
        fields: dict[str, Any] = {
            "request_id": 2,
            "recovery_epoch": EPOCH,
            "mode_epoch": 0,
            "routing_version": self.spec.routing.version,
            "batch_id": batch_id,
            "attempt": 0,
            "samples": 4,
            "pull_step": self.shards[shard].step if pull_step is None else pull_step,
            "table_sizes": tuple(sizes.tolist()),
            "keys": unique.keys[part],
            "counts": unique.counts[part],
            "gradients": keep_admitted(gradients[values], bits[part], sizes, self.dims),
            "dense": dense[slice(*self.spec.routing.dense_range(shard))],
            "admitted": bits[part],
        }
        return Contribution(**{**fields, **changes})

    def wait_for(self, client: PsClient, *requests: Open) -> None:
        """Poll until all of them are answered, whatever else is."""
        deadline = time.monotonic() + 60
        while not all(request.done for request in requests):
            assert time.monotonic() < deadline, "the requests were not answered"
            client.poll(0.5)

    def pulled(
        self, client: PsClient, unique: Deduplicated, at_step: int = ANY_STEP
    ) -> PulledBatch:
        """Pull through a client."""
        pulled = client.start_pull(unique, at_step=at_step)
        self.wait_for(client, pulled)
        return pulled

    def start_push(self, client: PsClient, pulled: PulledBatch, batch_id: int) -> Open:
        """Push through a client what `contribution` makes from batch_id."""
        rng = np.random.default_rng(batch_id + 10)
        gradients = self._gradients(pulled.unique, rng)
        dense = rng.normal(size=self.spec.dense_size).astype(np.float32)
        identity = Identity(0, batch_id, 0, 4)
        return client.start_push(pulled, identity, gradients=gradients, dense=dense)

    def _gradients(self, unique: Deduplicated, rng: np.random.Generator) -> np.ndarray:
        """Values that depend on the key and not on where its row lies."""
        values = np.empty(unique.value_starts[-1], np.float32)
        place = key = 0
        scale = np.float32(rng.normal())
        for sizes in unique.sizes:
            for size, dim in zip(sizes, self.dims, strict=True):
                for k in unique.keys[key : key + size]:
                    column = np.arange(dim, dtype=np.float32)
                    values[place : place + dim] = scale * np.sin(column + np.float32(k % 977))
                    place += dim
                key += size
        return values

    def record(self, step: int, *entries: Entry | int, **changes: Any) -> Record:
        """A record of batches; a plain number is the first attempt at weight 1."""
        named = tuple(e if isinstance(e, Entry) else Entry(e, 0, 1.0) for e in entries)
        fields: dict[str, Any] = {
            "step": step,
            "recovery_epoch": EPOCH,
            "mode_epoch": 0,
            "entries": named,
            "divisor": 4 * len(named),
            "scalars": tuple(
                step_scalars(o, learning_rate=o.learning_rate, step=step)
                for o in self.spec.optimizers
            ),
        }
        return Record(**{**fields, **changes})

    # Whole steps ------------------------------------------------------------------------------

    def send(self, shard: int, message: Any, sender: str = "tester") -> Reply:
        """Hand a message over that has exactly one reply."""
        (outgoing,) = self.shards[shard].handle(message, sender)
        return outgoing.reply

    def apply(self, shard: int, *records: Record, **changes: Any) -> Reply:
        fields = {"request_id": 3, "recovery_epoch": EPOCH, "records": records}
        return self.send(shard, Apply(**{**fields, **changes}))

    def admitted(self, unique: Deduplicated) -> np.ndarray:
        """Pull from every shard; return the admitted bits, uint8[u]."""
        replies = [self.send(s, self.pull(s, unique)) for s in range(len(self.shards))]
        assert all(isinstance(reply, PullReply) for reply in replies)
        return np.concatenate([reply.admitted for reply in replies])

    def push(self, batch_id: int, *keys: Sequence[int], **changes: Any) -> None:
        """Pull a batch and push what it contributes, on every shard."""
        unique = self.unique(*keys)
        admitted = self.admitted(unique)
        for s in range(len(self.shards)):
            message = self.contribution(s, unique, admitted=admitted, batch_id=batch_id, **changes)
            reply = self.send(s, message)
            assert type(reply).__name__ == "PushReply", reply

    def step(self, *entries: Entry | int, **changes: Any) -> None:
        """Apply a record of pushed batches on every shard."""
        for s, shard in enumerate(self.shards):
            reply = self.apply(s, self.record(shard.step, *entries, **changes))
            assert type(reply).__name__ == "ApplyReply", reply

    def train(self, batch_id: int, *keys: Sequence[int], **changes: Any) -> None:
        """One step of one batch."""
        self.push(batch_id, *keys)
        self.step(batch_id, **changes)

    @property
    def state(self) -> Any:
        """Everything that a message could change."""
        return self.digest, [
            (
                shard.step,
                shard.recovery_epoch,
                list(shard.log),
                shard.num_parked,
                len(shard.buffer),
                shard.buffer.nbytes,
                shard.buffer.low_water,
                [(len(table), table.num_unadmitted) for table in shard.tables],
            )
            for shard in self.shards
        ]

    @property
    def digest(self) -> str:
        """The digest of the model over all shards."""
        routing = self.spec.routing
        tables = [digests_of_shard(s.tables, routing, s.index) for s in self.shards]
        return shards_digest(routing, tables, [block_digests(s.dense) for s in self.shards])

    def write_checkpoint(self, directory: Path, **changes: Any) -> Path:
        """Write every shard's files and the manifest, as the driver of a job does."""
        files = tuple(e for shard in self.shards for e in write_shard(directory, shard))
        write_manifest(directory, self.manifest(**{"files": files, **changes}))
        return directory

    def manifest(self, **changes: Any) -> Manifest:
        """The manifest of a checkpoint of the job."""
        fields: dict[str, Any] = {
            "kind": "full",
            "step": self.shards[0].step,
            "recovery_epoch": EPOCH,
            "store": self.spec.to_json(),
            "model": {},
            "job": {},
            "sorted": self.spec.routing.in_order,
        }
        return Manifest(**{**fields, **changes})


class ServedJob:
    """The shards of a job behind real sockets in this process."""

    secret = b"a secret of this job"

    def __init__(
        self,
        job: SmallJob,
        *,
        network: bool = False,
        compress: bool = False,
        max_reply_bytes: int = 1 << 28,
    ) -> None:
        self.job = job
        self.errors: list[BaseException] = []
        self.locks = [ReadWriteLock() for _ in job.shards]
        self._network = network
        self._compress = compress
        self._max_reply_bytes = max_reply_bytes
        self._clients: list[PsClient] = []
        self.planes = [self._serve(index) for index in range(len(job.shards))]

    def _serve(self, index: int) -> DataPlane:
        return DataPlane(
            self.job.shards[index],
            lock=self.locks[index],
            secret=self.secret,
            compress=self._compress,
            max_reply_bytes=self._max_reply_bytes,
            on_error=self.errors.append,
        )

    def address(self, shard: int) -> Address:
        plane = self.planes[shard]
        if not self._network:
            return plane.listener.address("here")
        plane.listener.open_network("127.0.0.1")
        return plane.listener.address("elsewhere")

    def connect(self, shard: int) -> socket.socket:
        return connect(self.address(shard), node_id="here", secret=self.secret)

    def client(self, **options: Any) -> PsClient:
        fields = {"recovery_epoch": EPOCH, "retry_seconds": 5.0, "compress": self._compress}
        client = PsClient(self.job.spec, self.connect, **{**fields, **options})
        self._clients.append(client)
        return client

    def restart(self, shard: int) -> None:
        """Serve the same shard on other sockets; its old connections are gone."""
        self.planes[shard].close()
        self.planes[shard] = self._serve(shard)

    def break_connections(self, shard: int) -> None:
        """Break what is connected now, from the shard's side."""
        for peer in self.planes[shard].listener.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for plane in self.planes:
            plane.close()


SAVED_TABLES = (
    TableSpec(name="adagrad", dim=3, admission=CounterAdmission(min_count=2)),
    TableSpec(name="adam", dim=2, optimizer=AdamAsync()),
    TableSpec(name="sgd.1-x_y", dim=1, optimizer=Sgd()),
    TableSpec(name="empty", dim=4),
)


class SavedJob(SmallJob):
    """A job with tables of every kind that was trained a little, to be written and restored."""

    tables = SAVED_TABLES

    def __init__(self, num_shards: int) -> None:
        super().__init__(SAVED_TABLES, num_shards=num_shards, dense_size=2500)
        rng = np.random.default_rng(1)
        for step in range(4):
            keys = rng.zipf(1.3, 300) % 1000
            self.train(step, keys, [*range(step * 40, step * 40 + 60), -(2**63)], keys[:50], [])

    @staticmethod
    def restore(
        directory: Path, num_shards: int, tables: Sequence[TableSpec] = SAVED_TABLES
    ) -> SmallJob:
        """A new job that starts from a checkpoint."""
        job = SmallJob(tables, num_shards=num_shards, dense_size=2500, initialize=False)
        reader = CheckpointReader(directory)
        for shard in job.shards:
            start_shard_from(shard, reader, recovery_epoch=EPOCH)
        return job


@pytest.fixture(scope="session")
def saved_job() -> type[SavedJob]:
    return SavedJob


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards; for reading only."""
    return SavedJob(2).write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def small_job() -> type[SmallJob]:
    return SmallJob


@pytest.fixture
def serve() -> Iterator[Callable[..., ServedJob]]:
    """Serves jobs, and checks that nothing of them is left behind."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    served: list[ServedJob] = []

    def start(job: SmallJob, **options: Any) -> ServedJob:
        served.append(ServedJob(job, **options))
        return served[-1]

    yield start
    for one in served:
        one.close()
    deadline = time.monotonic() + 60

    def left() -> tuple[set[threading.Thread], int]:
        return set(threading.enumerate()) - threads, open_descriptors() - descriptors

    # Ray, where an earlier test started it in this process, opens some for a moment, too.
    while (left()[0] or left()[1] > 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left()[0], "every thread has ended"
    assert left()[1] <= 0, "every socket is closed"
    assert not [
        p.listener.path for one in served for p in one.planes if os.path.exists(p.listener.path)
    ]


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that hold little, as on most machines, so that large frames have to wait."""
    monkeypatch.setattr(sockets, "_SOCKET_BUFFER_BYTES", 64 << 10)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
