"""A long job on the same keys holds no more at its end than after its start.

All of it runs in this process, by threads: coordinator, servers, a worker; with their sockets, but
without Ray. The records that shards keep of their steps are known to grow, and are taken from them.
"""

import gc
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize
from socket import SHUT_RDWR
from typing import Any

import numpy as np
import pytest

from ps.messages.exchange import Refusal
from ps.messages.pull_push import Contribution
from ps.server.server import ServerSetup, ShardServer
from ps.shard.buffer import GradientBuffer
from runtime.free_list import FreeList
from scheduler import JobConfig
from scheduler.coordinator.server import CoordinatorServer
from scheduler.coordinator.worker_connections import ControlPlane
from scheduler.driver.resolved import JobSpecs, resolve
from worker.faults import FaultPlan
from worker.loop import LoopOptions
from worker.models import build_model, initial_parameters
from worker.running import WorkerSetup, make_loop

NODE = "here"
# What batches in flight hold at a moment and not at another, and what a step may leave behind.
SLACK_BLOCKS, BLOCKS_A_STEP = 1500, 0.1  # the coordinator's clock keeps a number a tick
SLACK_BYTES, BYTES_A_STEP = 4 << 20, 100
SLACK_FILES, SLACK_THREADS = 4, 2


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds at a moment.

    `blocks` are those of the interpreter's own memory: a few for every object. Not the objects
    themselves: a list of them has some that other threads are just making, and breaks these.
    """

    step: int
    blocks: int
    resident_bytes: int
    files: int
    threads: int

    @classmethod
    def now(cls, step: int) -> "Held":
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        blocks = sys.getallocatedblocks()
        return cls(step, blocks, pages * getpagesize(), files, threading.active_count())


def leaks(before: Held, after: Held) -> list[str]:
    """Name what has grown by more than steps may leave behind."""
    steps = after.step - before.step
    bounds = {
        "blocks": SLACK_BLOCKS + BLOCKS_A_STEP * steps,
        "resident_bytes": SLACK_BYTES + BYTES_A_STEP * steps,
        "files": SLACK_FILES,
        "threads": SLACK_THREADS,
    }
    grown = {name: getattr(after, name) - getattr(before, name) for name in bounds}
    return [
        f"{name} grew by {grown[name]} in {steps} steps"
        for name in bounds
        if grown[name] > bounds[name]
    ]


def specs_of(samples: Path) -> JobSpecs:
    adagrad = {"type": "adagrad", "learning_rate": 0.02, "initial_accumulator": 1e-4}
    config = {
        "name": "long",
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b", {"name": "tags", "column": "tags", "combiner": "mean"}],
            "batch_size": 50,
            "epochs": 1000,
        },
        "embedding": {"dim": 4, "optimizer": adagrad},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
        "training": {"mode": "async", "global_batch": 1000},
        "cluster": {"workers": 1, "servers": 2},
        "run": {"dir": str(samples / "never-written")},
    }
    return resolve(JobConfig.from_dict(config))


class Job:
    """A job that trains in threads of this process."""

    def __init__(self, specs: JobSpecs, stack: ExitStack) -> None:
        self._secret = secrets.token_bytes(32)
        self._dense = initial_parameters(build_model(specs.model), specs.model.seed)
        self.servers = [
            stack.enter_context(closing(self._server(specs, index)))
            for index in range(specs.store.num_shards)
        ]
        addresses = tuple(server.address() for server in self.servers)
        self.coordinator = stack.enter_context(
            closing(
                CoordinatorServer(
                    specs.coordinator,
                    addresses,
                    secret=self._secret,
                    node_id=NODE,
                    retry_seconds=5.0,
                )
            )
        )
        plane = stack.enter_context(
            closing(
                ControlPlane(
                    self.coordinator.exchange,
                    secret=self._secret,
                    on_error=self.coordinator.fail,
                )
            )
        )
        setup = WorkerSetup(
            store=specs.store,
            model=specs.model,
            data=specs.data,
            plan=specs.plan,
            evaluation_plan=None,
            grows=False,
            threads=1,
            depth=2,
            cache_bytes=1 << 20,
            addresses=addresses,
            coordinator=plane.listener.address(NODE),
            secret=self._secret,
            recovery_epoch=specs.coordinator.recovery_epoch,
            options=LoopOptions(),
            faults=FaultPlan(),
        )
        loop = make_loop(setup, worker=0, incarnation=0, node_id=NODE)
        self._thread = threading.Thread(target=loop.run)

    def _server(self, specs: JobSpecs, index: int) -> ShardServer:
        setup = ServerSetup(
            store=specs.store,
            index=index,
            secret=self._secret,
            max_contributions=256,
            max_buffer_bytes=1 << 26,
        )
        server = ShardServer(setup, node_id=NODE)
        part = slice(*specs.store.routing.dense_range(index))
        server.initialize(specs.coordinator.recovery_epoch, np.ascontiguousarray(self._dense[part]))
        return server

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.coordinator.stop_workers()
        self._thread.join(timeout=60.0)
        assert not self._thread.is_alive()

    def held_at(self, step: int) -> Held:
        """Return what is held once so many steps are applied."""
        return Held.now(self.reach(step))

    def reach(self, step: int) -> int:
        """Wait until so many steps are applied, and look on as a driver does meanwhile."""
        while True:
            status = self.coordinator.status()
            assert status.failure is None, status.failure
            assert self._thread.is_alive()
            self.coordinator.take_batches()
            if status.applied_step >= step:
                return status.applied_step
            time.sleep(0.02)


@contextmanager
def running(
    samples: Path, change: Callable[[ShardServer], None] = lambda server: None
) -> Iterator[Job]:
    with ExitStack() as stack:
        job = Job(specs_of(samples), stack)
        for server in job.servers:
            change(server)
        job.start()
        try:
            yield job
        finally:
            job.stop()


class KeepsGradients(GradientBuffer):
    """Holds on to every contribution."""

    def add(self, contribution: Contribution) -> Refusal | None:
        self.kept = [*getattr(self, "kept", []), contribution]
        return super().add(contribution)


class Taken:
    """Counts the arrays that free lists ever gave out; each of them is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._arrays: dict[int, np.ndarray] = {}
        take = FreeList.take

        def remember(free: Any, n: int) -> np.ndarray:
            array = take(free, n)
            self._arrays[id(array.base)] = array.base
            return array

        monkeypatch.setattr(FreeList, "take", remember)

    @property
    def count(self) -> int:
        return len(self._arrays)


def keep_gradients(server: ShardServer) -> None:
    buffer = server._shard.buffer
    server._shard.buffer = KeepsGradients(
        max_contributions=buffer.max_contributions, max_bytes=buffer.max_bytes
    )


@pytest.mark.usefixtures("spoiled_arrays")
def test_workers_use_arrays_again_and_read_none_that_was_given_back(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Taken(monkeypatch)
    with running(samples) as job:
        job.reach(200)
        before = taken.count
        for step in range(220, 520, 20):  # what is not answered yet is sent again
            job.reach(step)
            for peer in job.servers[step % 40 // 20]._plane.listener.peers:
                with suppress(OSError):
                    peer.sock.shutdown(SHUT_RDWR)
        after = taken.count
        dense = [server._shard.dense.vector for server in job.servers]

    # A batch takes 20. Few are new: one after another finds that it is too small for its batch.
    assert after - before < 20
    assert all(np.isfinite(vector).all() for vector in dense)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_20000_steps_on_the_same_keys_hold_no_more_than_5000(samples: Path) -> None:
    with running(samples) as job:
        before, after = job.held_at(5_000), job.held_at(20_000)
    assert leaks(before, after) == []


@pytest.mark.slow
def test_a_shard_that_keeps_gradients_is_noticed(samples: Path) -> None:
    with running(samples) as job:
        assert leaks(job.held_at(300), job.held_at(800)) == []
    with running(samples, keep_gradients) as job:
        found = leaks(job.held_at(100), job.held_at(400))
    assert any(text.startswith("blocks grew") for text in found), found
