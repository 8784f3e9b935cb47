"""No call of the driver waits without end, and a checkpoint that is there is not written again."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

import scheduler.driver.answers
import scheduler.driver.checkpoints
import scheduler.driver.launch
from ps.checkpoint.read import CheckpointReader
from ps.server.server import ServerSetup, ShardServer
from scheduler import JobConfig
from scheduler.coordinator.coordinator_state import beginning_of
from scheduler.coordinator.status import Status
from scheduler.driver.answers import answers_of
from scheduler.driver.checkpoints import CheckpointWriter
from scheduler.driver.launch import Launcher, start_ray
from scheduler.driver.processes import (
    COORDINATOR,
    CoordinatorProcess,
    Processes,
    ProcessLostError,
    ServerProcess,
    Who,
)
from scheduler.driver.ray_calls import first_line, seconds_to_move
from scheduler.driver.resolved import JobSpecs, resolve
from scheduler.errors import StartError, TrainingError
from scheduler.job.config import ClusterConfig
from scheduler.run.directory import RunDirectory
from worker.models import build_model, initial_parameters


class FakeRay:
    """Calls are functions, made when their result is asked for; each wait must have a limit."""

    exceptions = scheduler.driver.checkpoints.ray.exceptions

    def __init__(self) -> None:
        self.limits: list[float] = []

    def get(self, calls: Any, *, timeout: float) -> Any:
        self.limits.append(timeout)
        return [call() for call in calls] if isinstance(calls, list) else calls()

    def wait(self, calls: list[Any], *, num_returns: int, timeout: float) -> tuple[Any, Any]:
        self.limits.append(timeout)
        late = [call for call in calls if getattr(call, "hangs", False)]
        return [call for call in calls if call not in late], late


def remote(method: Callable[..., Any]) -> Any:
    return SimpleNamespace(remote=lambda *args, **named: lambda: method(*args, **named))


def hanging() -> Any:
    def call() -> None:
        raise AssertionError("it is never answered")

    call.hangs = True  # type: ignore[attr-defined]
    return SimpleNamespace(remote=lambda *args, **named: call)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for module in (
        scheduler.driver.answers,
        scheduler.driver.checkpoints,
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
        self._server = server
        self.specs = specs
        self.run = run
        state = beginning_of(specs.coordinator)
        self.server = SimpleNamespace(
            write_checkpoint=remote(self._write), stats=remote(server.stats)
        )
        coordinator = SimpleNamespace(cut_state=remote(lambda step: state))
        self.processes = Processes(
            None,  # type: ignore[arg-type]
            [ServerProcess(self.server, begun=None)],
            CoordinatorProcess(coordinator, "coordinator"),
        )
        self.writer = CheckpointWriter(specs, self.processes, run)
        self.status = Status(mode="sync")

    def _write(self, directory: str, step: int) -> Any:
        self.written += 1
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
    write = job.server.write_checkpoint
    job.server.write_checkpoint = hanging()

    with pytest.raises(TrainingError, match="could not be written: 1 servers have not written it"):
        job.writer.write(job.status)

    assert list((Path(job.specs.config.run.dir) / "checkpoints").iterdir()) == []
    assert all(limit >= 30 for limit in ray.limits)
    job.server.write_checkpoint = write
    assert job.writer.write(job.status).path.exists()


def test_a_server_that_dies_as_it_writes_is_lost(job: Job) -> None:
    def dies(*_: Any) -> None:
        raise RayActorError(error_msg="the actor died")

    job.server.write_checkpoint = remote(dies)

    with pytest.raises(ProcessLostError, match="server 0 died: the actor died") as caught:
        job.writer.write(job.status)

    assert list(caught.value.lost) == [("server", 0)]
    assert list((Path(job.specs.config.run.dir) / "checkpoints").iterdir()) == []


def test_a_step_of_another_recovery_epoch_is_written_again(job: Job, ray: FakeRay) -> None:
    first = job.writer.write(job.status)
    job.run.enter_epoch()

    again = job.writer.write(job.status)

    assert again.path != first.path
    assert CheckpointReader(again.path).manifest.recovery_epoch == 1


def test_larger_models_may_take_longer() -> None:
    assert seconds_to_move(0) == 300
    assert seconds_to_move(100 << 30) == pytest.approx(300 + 10_240)


def test_all_who_do_not_answer_are_named_and_who_hangs_is_not_said_to_have_died(
    ray: FakeRay,
) -> None:
    def dies() -> None:
        raise ActorUnavailableError("the actor died", None)

    def out_of_memory() -> None:
        raise OutOfMemoryError("the node ran out of memory")

    nobody: Any = None
    servers = [ServerProcess(nobody, nobody, facts={"pid": 10 + i}) for i in range(4)]
    processes = Processes(nobody, servers, CoordinatorProcess(nobody, "c", facts={"pid": 7}))
    calls: dict[Who, Any] = {
        COORDINATOR: hanging().remote(),
        ("server", 1): dies,
        ("server", 2): lambda: 5,
        ("server", 3): out_of_memory,
    }

    with pytest.raises(ProcessLostError) as caught:
        answers_of(processes, calls)

    said = str(caught.value)
    assert sorted(caught.value.lost) == [COORDINATOR, ("server", 1), ("server", 3)]
    assert "the coordinator (pid 7) has not answered for 30 s: it hangs" in said
    assert "server 1 (pid 11) died: The actor" in said
    assert "server 3 (pid 13) died: the node ran out of memory" in said
    assert answers_of(processes, {("server", 2): lambda: 5}) == {("server", 2): 5}


def test_a_process_without_a_place_ends_the_start_and_is_told_of_before(ray: FakeRay) -> None:
    notes: list[str] = []
    launcher = Launcher(
        ClusterConfig(start_timeout_seconds=45), mixed_cpus=True, run="r", note=notes.append
    )
    nobody: Any = None
    server = ServerProcess(nobody, hanging().remote())
    processes = Processes(nobody, [server], CoordinatorProcess(nobody, "c"))

    with pytest.raises(StartError, match=r"did not come up within 45 s .*: server 0"):
        launcher.bring_up_servers(processes)

    assert notes == ["waiting for server 0: the cluster has no place yet, or is slow"]
    assert ray.limits == [10.0, 35.0]


def test_where_no_ray_cluster_answers_a_job_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    monkeypatch.setattr(
        scheduler.driver.launch, "why_unreachable", lambda address, seconds: "refused"
    )

    with pytest.raises(StartError, match=r"answers at head\.example:6379 \(RAY_ADDRESS\): refused"):
        start_ray(ClusterConfig(), namespace="x")


def test_a_ray_that_does_not_start_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**options: Any) -> None:
        raise Exception("The current node\ntimed out during startup.")  # as Ray raises it

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(scheduler.driver.launch.ray, "init", give_up)

    with pytest.raises(StartError, match=r"did not start .*\(The current node timed out during"):
        start_ray(ClusterConfig(), namespace="x")


def test_what_a_process_raised_is_told_by_its_own_words() -> None:
    """And not by those of Ray's text, whose first line names the process, in colours."""
    cause = MemoryError("table a needs 430,080 bytes below /ssd (No space left on device).\nmore")
    error = RayTaskError("watch", "Traceback ...\n  in watch\nMemoryError: ...", cause)

    assert first_line(error) == (
        "MemoryError: table a needs 430,080 bytes below /ssd (No space left on device)"
    )
