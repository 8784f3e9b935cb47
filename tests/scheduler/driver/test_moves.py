"""Jobs whose processes come to other nodes, in threads: who moves, and what that costs.

Nodes are taken away with a notice, or compute other bits.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from held_back import hold_back
from ray_of_threads import Handle, RayOfThreads
from saved_job import saved_job

import scheduler.driver.moves
from ps.server.data_plane import DataPlane
from ps.server.server import ShardServer
from runtime.fingerprint import process_facts
from scheduler import JobConfig, Trainer
from scheduler.coordinator.events import PauseWanted
from worker.actor import WorkerActor

NODES = ["here", "there"]


@pytest.fixture
def drained(
    jobs_in_threads: RayOfThreads, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, float | None]]:
    """Nodes that are being drained, as Ray says it; looked at all the time."""
    found: dict[str, float | None] = {}
    monkeypatch.setattr(scheduler.driver.moves, "draining_nodes", lambda: dict(found))
    monkeypatch.setattr(scheduler.driver.moves, "LOOK_SECONDS", 0.0)
    jobs_in_threads.handles.clear()
    jobs_in_threads.places = list(NODES)
    yield found
    jobs_in_threads.places, jobs_in_threads.bundles = ["here"], "here"
    for handle in jobs_in_threads.handles:  # who was killed lives on
        if handle.killed and isinstance(getattr(handle.instance, "_plane", None), DataPlane):
            handle.instance.close()


@contextmanager
def once(met: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as something is so."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.002):
            if met():
                act()
                return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_at_step(fake: RayOfThreads, step: int) -> Callable[[], bool]:
    """Return what tells whether the first server's shard has come to a step."""

    def reached() -> bool:
        servers = [h.instance for h in fake.handles if isinstance(h.instance, ShardServer)]
        return bool(servers) and getattr(getattr(servers[0], "_shard", None), "step", 0) >= step

    return reached


def coordinator(fake: RayOfThreads, epoch: int) -> Handle | None:
    """Return the coordinator of a recovery epoch, once it has begun."""
    for handle in fake.handles:
        server = getattr(handle.instance, "_server", None)
        if server is not None and server._coordinator.spec.recovery_epoch == epoch:
            return handle
    return None


def pause(fake: RayOfThreads) -> None:
    """Pause a job in its first epoch, so that it does not end however fast it trains."""
    handle = coordinator(fake, 0)
    assert handle is not None
    handle.call("order", PauseWanted(True))


@contextmanager
def goes_on_in_the_next_epoch(fake: RayOfThreads) -> Iterator[None]:
    """Have a job that is paused go on once it has recovered, or moved."""

    def go_on() -> None:
        handle = coordinator(fake, 1)
        assert handle is not None
        handle.call("order", PauseWanted(False))

    with once(lambda: coordinator(fake, 1) is not None, go_on):
        yield


def job(samples: Path, run: Path, **sections: Any) -> JobConfig:
    options = {
        "cluster": {"workers": 2, "servers": 2},
        "checkpoint": {"every_steps": 100, "every_seconds": None},
        **sections,
    }
    return JobConfig.from_dict(saved_job(samples, run, **options))


def test_what_runs_on_a_drained_node_moves_and_no_step_is_done_twice(
    jobs_in_threads: RayOfThreads,
    drained: dict[str, float | None],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = Trainer(job(samples, tmp_path / "calm")).fit().metrics
    jobs_in_threads.handles.clear()
    hold_back(monkeypatch, lambda: coordinator(jobs_in_threads, 1) is None, seconds=0.1)

    def drain() -> None:
        pause(jobs_in_threads)
        jobs_in_threads.places = ["there"]
        drained["here"] = time.time() + 60.0

    with (
        once(is_at_step(jobs_in_threads, 8), drain),
        goes_on_in_the_next_epoch(jobs_in_threads),
    ):
        config = job(samples, tmp_path / "drained")
        moved = Trainer(config).fit().metrics

    assert moved["model_digest"] == calm["model_digest"]
    (move,) = moved["recoveries"]
    assert (move["kind"], move["redone_steps"], move["redone_samples"]) == ("move", 0, 0)
    assert move["from_step"] == move["to_step"] >= 8
    assert moved["train_loss"] == pytest.approx(calm["train_loss"], rel=1e-12)
    (notice,) = moved["drains"]
    assert 50 < notice["seconds_left"] <= 60
    assert [name.split(" (")[0] for name in notice["processes"]] == [
        "the coordinator", "server 0", "worker 1",
    ]  # fmt: skip
    assert {process["node"] for process in moved["processes"]} == {"there"}
    assert (moved["worker_restarts"], moved["workers_moved"]) == (0, 1)
    said = capsys.readouterr().err
    assert "node here will be taken away in" in said
    assert "moves at step" in said


def test_where_there_is_no_other_place_all_stays_and_the_node_s_end_is_no_failure(
    jobs_in_threads: RayOfThreads,
    drained: dict[str, float | None],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold_back(monkeypatch, lambda: coordinator(jobs_in_threads, 1) is None, seconds=0.1)

    def drain() -> None:
        pause(jobs_in_threads)
        jobs_in_threads.places = ["here"]  # which will be taken away as well
        drained["here"] = time.time() + 60.0

    def end() -> None:
        for handle in jobs_in_threads.handles:
            if handle.node == "here" and isinstance(handle.instance, ShardServer):
                jobs_in_threads.places = ["there"]
                handle.kill()
                return

    checkpoints, told = tmp_path / "run" / "checkpoints", list[str]()

    def is_saved() -> bool:
        told.append(capsys.readouterr().err)
        return "can't move" in "".join(told) and any(checkpoints.glob("full-*"))

    with (
        once(is_at_step(jobs_in_threads, 4), drain),
        once(is_saved, end),
        goes_on_in_the_next_epoch(jobs_in_threads),
    ):
        config = job(samples, tmp_path / "run", cluster={"max_failures": 0, "servers": 2})
        metrics = Trainer(config).fit().metrics

    (loss,) = metrics["recoveries"]
    assert loss["kind"] == "preemption"
    assert loss["to_step"] >= 4, "the notice has led to a cut"
    ended = [metrics[f"samples_{how}"] for how in ("trained", "dropped", "skipped")]
    assert sum(ended) == 2 * 5000
    assert "the other place that the cluster has will be taken away too" in "".join(told)


def test_what_is_replaced_where_it_would_compute_other_bits_is_placed_once_more(
    jobs_in_threads: RayOfThreads,
    drained: dict[str, float | None],
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def facts_of(node: str) -> dict[str, Any]:
        facts = process_facts(node)
        if node == "odd":
            facts["fingerprint"] = {**facts["fingerprint"], "numpy": "0.1", "digest": "odd"}
        return facts

    hold_back(monkeypatch, lambda: coordinator(jobs_in_threads, 1) is None, seconds=0.1)
    for role in ("ps.server.actor", "worker.actor"):
        monkeypatch.setattr(f"{role}.process_facts", facts_of)

    def kill() -> None:
        # Once it is avoided, it is no place any more, though the bundles are there.
        jobs_in_threads.places, jobs_in_threads.bundles = ["odd", "odd", "odd", "here"], "odd"
        for kind in (ShardServer, WorkerActor.__ray_metadata__.modified_class):
            of_kind = [h for h in jobs_in_threads.handles if isinstance(h.instance, kind)]
            of_kind[0].kill()

    with once(is_at_step(jobs_in_threads, 5), kill):
        metrics = Trainer(job(samples, tmp_path / "run")).fit().metrics

    assert {process["node"] for process in metrics["processes"]} <= {"here", "there"}
    assert len(metrics["recoveries"]) == 1
    assert metrics["samples_trained"] == 2 * 5000
