"""Jobs whose standbys take the places of processes that are frozen, or gone with their node."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from held_end import pause
from ray_of_threads import train_in_threads
from small_dlrm import small_dlrm

from injection.processes import kill
from ps.messages.exchange import Refusal, Request
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.net.sockets import connect, receive, send
from scheduler import JobConfig, Result, Trainer
from scheduler.coordinator.status import Status
from scheduler.driver.processes import ServerProcess
from scheduler.driver.supervisor import Supervisor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

# Batches that take so long leave the driver time to look at the job before it ends.
SLOW = {"kind": "slow", "index": [0, 1], "least_seconds": 0.1}
FIRST_STEPS = 5
# For which the old process is asked once it thaws: longer than its lease, which is 3 s.
ASKED_SECONDS = 4.0

Story = Iterator[None]


def job(samples: Path, run: Path, **cluster: Any) -> JobConfig:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    sections: dict[str, Any] = {
        "embedding": {"optimizer": adagrad},
        "model": {"optimizer": adagrad},
        "training": {"mode": "sync"},
        "cluster": cluster,
        # Figures would ask the frozen server, too, and find sooner that it does not answer.
        "run": {"progress_every_seconds": 3600, "allow_faults": True},
    }
    return JobConfig.from_dict(small_dlrm(samples, run, **sections))


@pytest.fixture(scope="module")
def calm(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the job comes to undisturbed."""
    return train_in_threads(job(samples, tmp_path_factory.mktemp("calm") / "run")).metrics


def fit(
    config: JobConfig,
    story: Callable[[Supervisor, Callable[[], Status]], Story],
    monkeypatch: pytest.MonkeyPatch,
) -> Result:
    """Run a job, and go on with a story at each look of its driver; it has to come to its end."""
    status_of, seen = Supervisor.status, list[Status]()
    told, over = list[Story](), list[None]()

    def status(supervisor: Supervisor) -> Status:
        seen[:] = [status_of(supervisor)]
        if not told:
            told.append(story(supervisor, lambda: seen[0]))
        if not over and next(told[0], over) is over:
            over.append(None)
        return seen[0]

    monkeypatch.setattr(Supervisor, "status", status)
    result = Trainer(config).fit()
    assert over, "the job was over before"
    return result


class OldServer:
    """A server that is to be frozen, and how it is spoken to as by a worker that is cut off."""

    def __init__(self, supervisor: Supervisor, status: Status) -> None:
        self.process: ServerProcess = supervisor.processes.servers[0]
        self.pid: int = self.process.facts["pid"]
        self.epoch = status.recovery_epoch
        self._secret = supervisor._launcher.secret
        self._routing = supervisor._specs.store.routing

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def asked(self, message: Request) -> str:
        """Return what a message comes to: the reason of a refusal, or the kind of the reply."""
        address = self.process.address
        assert address is not None
        with connect(address, node_id=address.node_id, secret=self._secret) as sock:
            send(sock, message)
            reply = receive(sock)[0]
        return reply.reason if isinstance(reply, Refusal) else type(reply).__name__

    def pull(self, epoch: int) -> str:
        """Ask for dense parameters alone."""
        return self.asked(
            Pull(
                request_id=1,
                recovery_epoch=epoch,
                routing_version=self._routing.version,
                at_step=ANY_STEP,
                table_sizes=(0, 0),
                keys=np.empty(0, np.int64),
                counts=np.empty(0, np.uint32),
                dense=True,
            )
        )

    def push(self, epoch: int) -> str:
        """Push a batch that nobody was given, and that has no keys."""
        first, last = self._routing.dense_range(0)
        return self.asked(
            Contribution(
                request_id=2,
                recovery_epoch=epoch,
                mode_epoch=0,
                routing_version=self._routing.version,
                batch_id=10**6,
                attempt=0,
                samples=64,
                pull_step=0,
                table_sizes=(0, 0),
                keys=np.empty(0, np.int64),
                counts=np.empty(0, np.uint32),
                gradients=np.empty(0, np.float32),
                dense=np.zeros(last - first, np.float32),
                admitted=np.empty(0, np.uint8),
            )
        )


def test_a_server_that_was_frozen_and_replaced_answers_nobody_when_it_thaws(
    ray_cluster: None,
    samples: Path,
    tmp_path: Path,
    calm: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where its node can't be reached: what the driver does to end it has no effect."""
    old, answers = list[OldServer](), dict[int, set[str]]()
    end = ray.kill

    def end_others(handle: Any, **options: Any) -> None:
        if all(handle is not each.process.handle for each in old):
            end(handle, **options)

    def story(supervisor: Supervisor, status: Callable[[], Status]) -> Story:
        while status().applied_step < FIRST_STEPS:
            yield
        # At a moment when it applies nothing; what it is asked from then on waits in its sockets.
        pause(supervisor)
        while not (status().paused and is_idle(status())):
            yield
        frozen = OldServer(supervisor, status())
        assert frozen.pull(frozen.epoch) == PullReply.__name__
        old.append(frozen)
        frozen.send(signal.SIGSTOP)
        at = status().applied_step
        pause(supervisor, False)
        while status().applied_step < at + 2:
            yield
        assert supervisor.processes.servers[0] is not frozen.process
        frozen.send(signal.SIGCONT)
        until = time.monotonic() + ASKED_SECONDS
        epochs = (frozen.epoch, status().recovery_epoch)
        while time.monotonic() < until:
            for epoch in epochs:
                heard = answers.setdefault(epoch - frozen.epoch, set())
                heard |= {frozen.pull(epoch), frozen.push(epoch)}
            time.sleep(0.02)
        figures = ray.get(frozen.process.handle.stats.remote(), timeout=60)
        assert figures.step == at, "it has gone no further"

    monkeypatch.setattr(ray, "kill", end_others)
    cluster = {"standby": 1, "server_timeout_seconds": 6, "inject": [SLOW]}
    try:
        metrics = fit(job(samples, tmp_path / "run", **cluster), story, monkeypatch).metrics
    finally:
        for each in old:
            kill([psutil.Process(each.pid)] if psutil.pid_exists(each.pid) else [])

    assert answers == {0: {"unheard"}, 1: {"epoch"}}
    assert metrics["model_digest"] == calm["model_digest"]
    assert metrics["redone_steps"] == 0
    (recovery,) = metrics["recoveries"]
    assert recovery["promoted"] == [0]
    assert f"server 0 (pid {old[0].pid}) is lost" in recovery["cause"]
    assert metrics["samples_trained"] == calm["samples_trained"]


def is_idle(status: Status) -> bool:
    """Whether all batches that were given out have come to a step that all shards have applied."""
    batches = status.batches
    return status.applied_step == status.step and batches.leased == batches.applied


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head, which has all but servers, and two nodes that have two of them each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with tempfile.TemporaryDirectory(prefix="sm-", ignore_cleanup_errors=True) as folder:
        memory = {"object_store_memory": 128 << 20}
        head = {"num_cpus": 4, "resources": {"rest": 8}, "include_dashboard": False, **memory}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=2, resources={"ps": 2}, **memory)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            ray.init(address=cluster.address, namespace="tests", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_standbys_on_another_node_take_over_where_a_node_is_gone(
    two_nodes: Any,
    samples: Path,
    tmp_path: Path,
    calm: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = list[bool]()

    def story(supervisor: Supervisor, status: Callable[[], Status]) -> Story:
        while status().applied_step < FIRST_STEPS:
            yield
        processes = supervisor.processes
        for index, server in enumerate(processes.servers):
            apart.append(server.facts["node"] != processes.standbys[index].facts["node"])
        lost, at = processes.servers[0], status().applied_step
        kill_node(two_nodes, lost.facts["node"])
        while status().applied_step < at + 2:
            yield
        assert processes.servers[0] is not lost

    rest = {"rest": 1}
    resources = {"server": {"ps": 1}, "worker": rest, "coordinator": rest}
    cluster = {"standby": 1, "resources": resources, "inject": [SLOW]}
    metrics = fit(job(samples, tmp_path / "run", **cluster), story, monkeypatch).metrics

    assert apart == [True, True]
    assert metrics["model_digest"] == calm["model_digest"]
    assert metrics["redone_steps"] == 0
    assert 0 in {index for each in metrics["recoveries"] for index in each["promoted"]}
    assert metrics["samples_trained"] == calm["samples_trained"]


def kill_node(cluster: Any, node_id: str) -> None:
    """Kill a node's raylet, and all below that, without a goodbye."""
    (node,) = [each for each in cluster.worker_nodes if each.node_id == node_id]
    (raylet,) = node.all_processes["raylet"]
    first = psutil.Process(raylet.process.pid)
    processes = [first, *first.children(recursive=True)]
    cluster.remove_node(node, allow_graceful=False)
    kill(processes)
