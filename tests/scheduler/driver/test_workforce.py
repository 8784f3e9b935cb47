"""What becomes of a worker that failed: replaced, or the end of the job."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

import scheduler.driver.answers
import scheduler.driver.supervisor
import scheduler.driver.workforce
from ps.client.client import ShardLostError
from scheduler.driver.processes import CoordinatorProcess, Processes, WorkerProcess
from scheduler.driver.supervisor import Supervisor
from scheduler.errors import TrainingError
from scheduler.job.config import JobConfig
from scheduler.run.recoveries import Recoveries
from worker.coordinator_client import CoordinatorLostError
from worker.errors import DataError, UnreadableError
from worker.loop import NonFiniteGradientError


class FakeRay:
    """Calls are what they end with; the clock of the workforce is a number."""

    def __init__(self) -> None:
        self.now = 0.0
        self.killed: list[Any] = []

    def get(self, call: Any, timeout: float | None = None) -> Any:
        if isinstance(call, Exception):
            raise call
        return call

    def wait(self, calls: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return calls, []

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)

    def monotonic(self) -> float:
        return self.now


class Handle:
    """A worker's actor, which was told to leave epochs."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.loaded: list[Any] = []
        self.leave = SimpleNamespace(remote=self.left.append)
        self.load_kernels = SimpleNamespace(remote=self.loaded.append)


class Fleet:
    """A supervisor whose servers and coordinator live; only its workers fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **cluster: Any) -> None:
        self.ray = FakeRay()
        monkeypatch.setattr(scheduler.driver.workforce, "ray", self.ray)
        monkeypatch.setattr(scheduler.driver.supervisor, "ray", self.ray)
        monkeypatch.setattr(scheduler.driver.answers, "ray", self.ray)
        monkeypatch.setattr(scheduler.driver.workforce, "time", self.ray)
        self.notes: list[str] = []
        self.lost: list[tuple[int, int]] = []
        self.run: Any = object()  # what workers do that are created
        config = JobConfig.from_dict(
            {
                "data": {"train": "x", "sparse": ["a"]},
                "model": {"type": "wide_deep"},
                "cluster": {"workers": 1, **cluster},
                "run": {"dir": "run"},
            }
        )
        told_nothing = SimpleNamespace(give_up=(), warnings=(), silent_shards=(), windows=())
        coordinator = SimpleNamespace(
            worker_lost=SimpleNamespace(remote=lambda *name: self.lost.append(name)),
            status=SimpleNamespace(remote=lambda told: told_nothing),
        )
        nobody: Any = None
        self.processes = Processes(nobody, [], CoordinatorProcess(coordinator, "coordinator"))
        self.supervisor = Supervisor(
            launcher=self,  # type: ignore[arg-type]
            processes=self.processes,
            config=config,
            run=nobody,
            progress=SimpleNamespace(note=self.notes.append),  # type: ignore[arg-type]
            recoveries=Recoveries(-1),
            cuts=nobody,
            collector=nobody,
            setups=nobody,
            standbys=nobody,
            specs=nobody,
        )
        monkeypatch.setattr(scheduler.driver.supervisor, "joined", lambda before, new: None)
        self.workforce = self.supervisor.workforce
        self.workforce.want(1)

    def create_worker(self, processes: Any, index: int, incarnation: int) -> WorkerProcess:
        return WorkerProcess(
            index,
            incarnation,
            handle=Handle(),
            created=self.ray.now,
            described=object(),
            run=self.run,
        )

    def set_to_work(self, setup: Any, worker: WorkerProcess) -> None:
        worker.run = setup

    def fail(self, error: Exception) -> None:
        """The worker ends with what it raised."""
        worker = self.processes.workers[0]
        worker.run = error
        self.workforce.look([error])


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "traceback", cause)


@pytest.mark.parametrize(
    "cause",
    [
        ShardLostError(0, 20.0, "timed out"),
        CoordinatorLostError("the coordinator could not be reached for 20 s"),
        OSError(28, "No space left on device"),
        MemoryError("no memory"),
        UnreadableError(what="a file can't be opened", file="s3://bucket/day.parquet"),
    ],
)
def test_a_worker_that_fails_where_it_runs_is_replaced_as_a_killed_one(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    fleet = Fleet(monkeypatch)

    fleet.fail(raised(cause))

    assert fleet.lost == [(0, 0)]
    assert fleet.processes.workers[0].incarnation == 1
    assert f"died: {cause}. It is replaced" in fleet.notes[-1]


def test_a_worker_that_ray_killed_for_the_memory_of_its_node_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(monkeypatch)

    fleet.fail(OutOfMemoryError("the node ran out of memory"))

    assert fleet.processes.workers[0].incarnation == 1


@pytest.mark.parametrize(
    "cause",
    [
        DataError(what="a label is 7", file="s3://bucket/day.parquet"),
        NonFiniteGradientError("batch 3 gave a gradient that is not finite"),
        UnreadableError(what="a row group can't be decoded", file="/data/day.parquet"),
        AssertionError("a fault of ours"),
    ],
)
def test_what_another_worker_would_find_too_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    fleet = Fleet(monkeypatch)

    with pytest.raises(TrainingError, match="worker 0: "):
        fleet.fail(raised(cause))


def test_a_file_of_a_store_that_a_second_worker_can_not_read_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(monkeypatch)

    def unreadable(row_group: int) -> RayTaskError:
        what = "a row group can't be decoded"
        return raised(UnreadableError(what=what, file="s3://b/day.parquet", row_group=row_group))

    fleet.fail(unreadable(0))
    fleet.fail(unreadable(1))
    with pytest.raises(TrainingError, match="row group 0"):
        fleet.fail(unreadable(0))


def test_restarts_are_limited_within_a_window_not_over_the_life_of_a_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(monkeypatch, max_worker_restarts=2, restart_window_seconds=100)
    lost = raised(ShardLostError(0, 20.0, "timed out"))

    for fleet.ray.now in (0.0, 90.0, 110.0, 200.0, 220.0):
        fleet.fail(lost)
    assert fleet.supervisor.worker_restarts == 5
    fleet.ray.now = 250.0
    with pytest.raises(TrainingError, match="replaced 2 times within the last 100 s"):
        fleet.fail(lost)


def test_the_first_workers_load_kernels_before_there_is_anything_to_connect_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(monkeypatch, workers=2)
    fleet.run = None
    fleet.processes.workers.clear()
    fleet.workforce._wanted = 2  # and none of them was asked for

    fleet.workforce.begin("kernels")  # type: ignore[arg-type]
    begun = list(fleet.processes.workers.values())
    fleet.workforce.go_to("setup")  # type: ignore[arg-type]

    assert [worker.handle.loaded for worker in begun] == [["kernels"], ["kernels"]]
    assert list(fleet.processes.workers.values()) == begun, "they are set to work where they are"
    assert [worker.run for worker in begun] == ["setup", "setup"]


def test_in_another_epoch_workers_run_again_where_they_are_and_the_dead_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = Fleet(monkeypatch)
    fleet.workforce._setup = object()  # type: ignore[assignment]
    fleet.workforce.want(5)
    workers = dict(fleet.processes.workers)
    ends = ["left", raised(ShardLostError(0, 20.0, "gone")), RayActorError(), object(), None]
    for worker, end in zip(workers.values(), ends, strict=True):
        worker.run = end
    monkeypatch.setattr(
        fleet.ray, "wait", lambda calls, **_: ([c for c in calls if c is not ends[3]], [ends[3]])
    )

    fleet.workforce.leave(0)
    fleet.workforce.go_to("setup")  # type: ignore[arg-type]

    assert all(worker.handle.left == [0] for worker in workers.values())
    now = fleet.processes.workers
    assert [now[i] is workers[i] for i in range(5)] == [True, True, False, False, True]
    assert [worker.run for worker in (now[0], now[1])] == ["setup", "setup"]
    assert now[4].run is None, "it is still coming up"
    assert sorted(fleet.lost) == [(2, 0), (3, 0)]
    assert "worker 3 (pid None) does not leave its work. It is replaced" in fleet.notes[-1]
