"""No call of the driver waits without end, and a checkpoint that is there is not written again."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError, RayActorError

import scheduler.driver.checkpoints
import scheduler.driver.launch
import scheduler.driver.supervisor
from ps.checkpoint.read import CheckpointReader
from ps.server.server import ServerSetup, ShardServer
from scheduler import JobConfig
from scheduler.coordinator.status import Status
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.launch import Launcher, start_ray
from scheduler.driver.ray_calls import seconds_to_move
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import StartError, TrainingError
from scheduler.job.config import ClusterConfig
from scheduler.run.directory import RunDirectory
from worker.models import build_model, initial_parameters


class FakeRay:
    """Calls are functions, made when their result is asked for; each `get` must have a limit."""

    exceptions = scheduler.driver.checkpoints.ray.exceptions

    def __init__(self) -> None:
        self.limits: list[float] = []

    def get(self, calls: Any, *, timeout: float) -> Any:
        self.limits.append(timeout)
        return [call() for call in calls] if isinstance(calls, list) else calls()

    def wait(self, calls: list[Any], *, num_returns: int, timeout: float) -> tuple[Any, Any]:
        return [], calls


def remote(method: Callable[..., Any]) -> Any:
    return SimpleNamespace(remote=lambda *args: lambda: method(*args))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for module in (
        scheduler.driver.checkpoints,
        scheduler.driver.supervisor,
        scheduler.driver.launch,
    ):
        monkeypatch.setattr(module, "ray", fake)
    return fake


@pytest.fixture
def specs(samples: Path, tmp_path: Path) -> JobSpecs:
    config = {
        "data": {"train": str(samples / "train-*.parquet"), "sparse": ["a"]},
        "embedding": {"dim": 4},
        "model": {"type": "deepfm", "mlp": [8]},
        "cluster": {"workers": 1, "servers": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    return resolve(JobConfig.from_dict(config))


class Job:
    """A server in this process that is at step 0; what its coordinator says is made up."""

    def __init__(self, specs: JobSpecs, run: RunDirectory, server: ShardServer) -> None:
        self.written = 0
        self.fails: BaseException | None = None
        self._server = server
        self.specs = specs
        clock = specs.coordinator.start.clock
        self.processes: Any = SimpleNamespace(
            servers=[
                SimpleNamespace(write_checkpoint=remote(self._write), stats=remote(server.stats))
            ],
            coordinator=SimpleNamespace(clock_state=remote(lambda: clock)),
        )
        self.writer = CheckpointWriter(specs, self.processes, run)
        self.status = Status(mode="sync")

    def _write(self, directory: str, step: int) -> Any:
        self.written += 1
        if self.fails is not None:
            raise self.fails
        return self._server.write_checkpoint(directory, step)


@pytest.fixture
def job(specs: JobSpecs, ray: FakeRay) -> Iterator[Job]:
    run = RunDirectory(specs.config, least_checkpoint_bytes=0)
    setup = ServerSetup(
        store=specs.store, index=0, secret=b"x", max_contributions=4, max_buffer_bytes=1 << 20
    )
    with closing(run), closing(ShardServer(setup, node_id="here")) as server:
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        server.initialize(0, np.ascontiguousarray(dense))
        yield Job(specs, run, server)


def test_a_checkpoint_at_an_unchanged_step_is_the_last_one_and_not_written_again(job: Job) -> None:
    first = job.writer.write(job.status)
    again = job.writer.write(job.status)

    assert again == first
    assert job.written == 1
    assert CheckpointReader(first.path).manifest.job["model_digest"] == first.digest


def test_a_checkpoint_that_somebody_removed_is_written_again(job: Job) -> None:
    first = job.writer.write(job.status)
    (first.path / "manifest.json").unlink()

    again = job.writer.write(job.status)

    assert again.path.name == "full-000000000000-2"
    assert again.digest == first.digest
    assert CheckpointReader(again.path).manifest.step == 0


def test_a_server_that_does_not_end_writing_fails_the_checkpoint_alone(
    job: Job, ray: FakeRay
) -> None:
    job.fails = GetTimeoutError("Get timed out")

    with pytest.raises(TrainingError, match="could not be written: Get timed out"):
        job.writer.write(job.status)

    assert list((Path(job.specs.config.run.dir) / "checkpoints").iterdir()) == []
    assert all(limit >= 30 for limit in ray.limits)
    job.fails = None
    assert job.writer.write(job.status).path.exists()


def test_larger_models_may_take_longer() -> None:
    assert seconds_to_move(0) == 300
    assert seconds_to_move(100 << 30) == pytest.approx(300 + 10_240)


def supervisor_whose_coordinator(raises: Exception) -> Supervisor:
    def answer() -> None:
        raise raises

    made = Supervisor.__new__(Supervisor)
    made.processes = SimpleNamespace(coordinator_facts={"pid": 7})  # type: ignore[assignment]
    made.tell_coordinator(answer)
    return made


def test_a_coordinator_that_hangs_is_not_said_to_have_died(ray: FakeRay) -> None:
    with pytest.raises(TrainingError, match=r"\(pid 7\) has not answered for 30 s: it hangs"):
        supervisor_whose_coordinator(GetTimeoutError("Get timed out"))
    with pytest.raises(TrainingError, match=r"\(pid 7\) died: the actor died"):
        supervisor_whose_coordinator(RayActorError(error_msg="the actor died"))


def test_a_server_that_does_not_take_its_part_of_the_model_ends_the_start(
    specs: JobSpecs, ray: FakeRay
) -> None:
    def hangs(*_: Any) -> None:
        raise GetTimeoutError("Get timed out")

    facts = {"fingerprint": {"digest": "x"}}
    server = SimpleNamespace(
        stats=remote(lambda: {}), describe=remote(lambda: facts), watch=remote(lambda: None),
        address=remote(lambda: None), initialize=remote(hangs),
    )  # fmt: skip
    ray.nodes = lambda: []  # type: ignore[attr-defined]
    launcher = Launcher(ClusterConfig(start_timeout_seconds=45), mixed_cpus=True, run="r")
    processes: Any = SimpleNamespace(servers=[server], begun=[])

    with pytest.raises(StartError, match="a server has not taken its part of the model within 45"):
        launcher.start_servers(processes, [np.zeros(1, np.float32)], specs.beginning)


def test_where_no_ray_cluster_answers_a_job_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    monkeypatch.setattr(
        scheduler.driver.launch, "why_unreachable", lambda address, seconds: "refused"
    )

    with pytest.raises(StartError, match=r"answers at head\.example:6379 \(RAY_ADDRESS\): refused"):
        start_ray(ClusterConfig(), namespace="x")
