"""What the driver asks for and writes does not grow with the length of a job, or its size."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import scheduler.driver.answers
import scheduler.driver.supervisor
from embedding.spec.optimizers import Sgd
from embedding.spec.table import TableSpec
from ps.net.listener import Listener
from ps.server.figures import ServerFigures
from ps.spec import StoreSpec
from runtime.process_figures import ProcessFigures
from runtime.strict_json import json_text
from scheduler.coordinator.evaluation import EvaluationResult
from scheduler.coordinator.events import GiveUpWorker, ShiftWanted, Warn
from scheduler.coordinator.exported_figures import coordinator_figures
from scheduler.coordinator.history import EVERYTHING
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.server import CoordinatorServer
from scheduler.coordinator.spec import CoordinatorSpec
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import Status
from scheduler.driver.processes import (
    CoordinatorProcess,
    Processes,
    ProcessLostError,
    ServerProcess,
)
from scheduler.driver.supervisor import Supervisor
from scheduler.job.config import JobConfig
from scheduler.run.interval_figures import MOST_PROCESSES
from scheduler.run.metrics import IntervalReport
from scheduler.run.recoveries import Recoveries
from worker.loop import STAGES

SPEC = CoordinatorSpec(
    store=StoreSpec(
        tables=(TableSpec(name="a", dim=4),),
        dense_size=0,
        dense_optimizer=Sgd(learning_rate=0.1),
        num_shards=1,
    ),
    plan=LedgerPlan(batches_per_epoch=8, epochs=1, rows_of=lambda batch: 8),
    evaluation_plan=None,
    mode="sync",
    group_size=1,
    global_batch=8,
    workers=1,
    depth=1,
)


def evaluation(step: int) -> EvaluationResult:
    return EvaluationResult(step, step, 0.75, 0.001, 0.5, 100)


@pytest.fixture
def server() -> Iterator[CoordinatorServer]:
    """A coordinator whose shard says nothing, so nothing is trained."""
    shard = Listener("shard 0", secret=b"x", serve=lambda peer: peer.sock.recv(1))
    made = CoordinatorServer(
        SPEC, (shard.address("here"),), secret=b"x", node_id="here", retry_seconds=1.0
    )
    yield made
    made.close()
    shard.close()


def evaluated(server: CoordinatorServer, *steps: int) -> None:
    server._coordinator.progress.evaluations += [evaluation(step) for step in steps]


def test_a_month_of_evaluations_and_shifts_is_told_once(server: CoordinatorServer) -> None:
    evaluated(server, *range(43_200))
    for number in range(1_000):
        server.order(ShiftWanted("gba" if number % 2 == 0 else "sync"))

    first = server.status()
    again = server.status(first.told)

    assert (len(first.evaluations), len(first.shifts)) == (43_200, 1_000)
    assert again.evaluations == ()
    assert again.shifts == first.shifts[-1:]  # its next step may have come meanwhile
    assert len(pickle.dumps(again)) < 10_000
    assert again.told == first.told


def test_who_wants_to_know_how_things_are_is_told_nothing_of_before(
    server: CoordinatorServer,
) -> None:
    evaluated(server, 1, 2)
    server.cut_taken(3, "path", None)

    status = server.status(EVERYTHING)
    server.cut_taken(4, "another", "why")

    assert (status.evaluations, status.shifts, status.cuts) == ((), (), ())
    assert (status.told.evaluations, status.told.cuts) == (2, 1)
    told = replace(EVERYTHING, cuts=status.told.cuts)
    assert [cut.path for cut in server.status(told).cuts] == ["another"]


def test_the_last_auc_is_exported_also_when_it_was_told_before(server: CoordinatorServer) -> None:
    evaluated(server, 1)

    figures = coordinator_figures(server.status(server.status().told))

    assert [f.value for f in figures if f.name == "eval_auc"] == [0.75]


CONFIG = JobConfig.from_dict(
    {
        "data": {"train": "x", "sparse": ["a"]},
        "model": {"type": "wide_deep"},
        "run": {"dir": "run"},
    }
)


def test_a_line_about_a_thousand_workers_has_the_slowest_and_sums() -> None:
    workers = {
        number: WorkerFigures(
            batches=1,
            samples=8,
            seconds=1.0 + number,
            process=ProcessFigures(
                peak_rss_bytes=1000 + number,
                bytes_sent=5,
                bytes_received=6,
                cpu_seconds=2.0,
                stage_seconds=dict.fromkeys(STAGES, 0.5),
            ),
        )
        for number in range(1000)
    }
    servers = [
        ServerFigures(
            process=ProcessFigures(
                peak_rss_bytes=10 + i,
                bytes_sent=1,
                bytes_received=2,
                cpu_seconds=3.0,
                stage_seconds={"apply": 1.0},
            )
        )
        for i in range(100)
    ]
    status = Status(workers=workers, shard_lag=tuple(range(100)))

    assert len(pickle.dumps(status)) < 300_000
    line = IntervalReport(CONFIG).line(status, servers)

    assert len(json_text(line)) < 12_000
    assert line["together"] == {"worker": 1000, "server": 100}
    assert len(line["workers"]) == MOST_PROCESSES
    assert line["workers"]["999"]["batch_seconds"] == 1000.0
    assert line["all_workers"]["samples"] == 8000
    assert line["peak_rss_bytes"]["worker"] == [1999]
    assert line["peak_rss_bytes"]["server"] == [109]
    assert line["cpu_seconds"]["worker"] == [2000.0]
    assert line["stage_seconds"]["worker"] == [dict.fromkeys(STAGES, 500.0)]
    assert line["stage_seconds"]["server"] == [{"apply": 100.0}]
    assert line["wire_bytes"] == {
        "pushed_and_pulled_by_workers": 11_000,
        "sent_by_servers": [100],
        "received_by_servers": [200],
    }
    assert line["shard_lag"] == [99]


def supervisor_of(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    ray = SimpleNamespace(get=lambda call, timeout: call, wait=lambda calls, **_: (calls, []))
    monkeypatch.setattr(scheduler.driver.answers, "ray", ray)
    ended = SimpleNamespace(wait=lambda calls, **_: ([], calls))
    monkeypatch.setattr(scheduler.driver.supervisor, "ray", ended)
    coordinator = SimpleNamespace(
        status=SimpleNamespace(remote=server.status),
        show_servers=SimpleNamespace(remote=server.show_servers),
    )
    nobody: Any = None
    return Supervisor(
        launcher=nobody,
        processes=Processes(nobody, [], CoordinatorProcess(coordinator, "coordinator")),
        config=CONFIG,
        run=nobody,
        progress=SimpleNamespace(note=lambda text: None),  # type: ignore[arg-type]
        recoveries=Recoveries(-1),
        cuts=SimpleNamespace(look=lambda cut, num_bytes, in_a_hurry: None, awaited=[]),  # type: ignore[arg-type]
        collector=nobody,
        setups=nobody,
        specs=nobody,
        standbys=SimpleNamespace(look=lambda: None),  # type: ignore[arg-type]
    )


def test_the_driver_has_the_whole_history_though_it_is_told_piece_by_piece(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervisor_of(server, monkeypatch)
    modes = server._coordinator.modes
    evaluated(server, 1)
    server.order(ShiftWanted("gba"))
    before = supervisor.status()
    evaluated(server, 2, 3)
    modes.applied(1, seconds=2.5, now=0.0)
    server.order(ShiftWanted("sync"))

    status = supervisor.status()

    assert [e.step for e in before.evaluations] == [1]
    assert [e.step for e in status.evaluations] == [1, 2, 3]
    assert [shift.to_mode for shift in status.shifts] == ["gba", "sync"]
    assert before.shifts[0].seconds_to_next_step is None
    assert status.shifts[0].seconds_to_next_step == 2.5
    assert supervisor.status() == replace(status, cpu_seconds=supervisor.last_status.cpu_seconds)  # type: ignore[union-attr]


def test_a_worker_to_be_given_up_is_heard_of_by_poll_whoever_asked_before(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervisor_of(server, monkeypatch)
    given_up: list[Any] = []
    noted: list[str] = []
    monkeypatch.setattr(supervisor.workforce, "give_up", lambda *named: given_up.append(named))
    monkeypatch.setattr(supervisor.workforce, "want", lambda count: None)
    supervisor._progress = SimpleNamespace(note=noted.append, advance=lambda samples: None)  # type: ignore[assignment]
    server._carry_out(GiveUpWorker(3, 1, "silent"))
    server._carry_out(Warn("slow"))
    server.status()  # an answer that is lost
    supervisor.status()

    for _ in range(2):
        supervisor.poll()

    assert given_up == [(3, 1, "silent")]
    assert noted == ["slow"]


def test_a_silent_shard_is_asked_and_lost_only_if_it_or_the_coordinator_gives_up(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervisor_of(server, monkeypatch)
    monkeypatch.setattr(supervisor.workforce, "want", lambda count: None)
    supervisor._progress = SimpleNamespace(note=print, advance=lambda samples: None)  # type: ignore[assignment]
    shard = SimpleNamespace(stats=SimpleNamespace(remote=lambda: "it answers"))
    supervisor.processes.servers.append(ServerProcess(shard, begun=None))

    server._notices.silent_shards.append((0, "shard 0 has answered nothing for 10 s"))
    supervisor.status()  # whoever asks first
    supervisor.poll()

    server._notices.silent_shards.append((0, "shard 0 could not be reached for 20 s"))
    server.fail(OSError("a shard is gone"))
    with pytest.raises(ProcessLostError, match="server 0 is lost: shard 0 could not be reached"):
        supervisor.poll()
