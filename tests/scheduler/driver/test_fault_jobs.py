"""Faults on purpose in whole jobs on a local Ray."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_of_threads import ray_of_threads, train_in_threads

from ps.client.faults import ConnectionFault, ConnectionFaults
from scheduler import ConfigError, JobConfig, Trainer
from scheduler.driver.fault_plans import coordinator_faults, worker_faults
from worker.faults import HangStage
from worker.loop import WorkerLoop
from worker.protocol import Token

SLOW = {"kind": "slow", "index": 0, "factor": 10.0}
# So slow that neither worker has trained everything before the other has started; a sleep, which
# takes as long whatever else the machine does.
BOTH_SLOW = {"kind": "slow", "index": [0, 1], "least_seconds": 0.02}
HANG = {"kind": "hang", "index": 0, "at_step": 7}
KILL = {"kind": "kill", "index": [0, 1], "at_step": 7}
DROP = {"kind": "drop", "between": ["worker", "server"], "probability": 0.01}
DELAY = {**DROP, "kind": "delay", "seconds": 0.2}
BETWEEN = r"cluster.inject.0.between: must be \[worker, server\] or \[coordinator, server\], got"


def job(
    samples: Path, run: Path, inject: list[dict[str, Any]], *, servers: int = 1, **training: Any
) -> dict[str, Any]:
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    return {
        "seed": 3,
        "data": {
            "train": str(samples / "train-*.parquet"),
            "dense": ["d1", "d2"],
            "sparse": ["a", "b"],
            "batch_size": 64,
        },
        "embedding": {"dim": 4, "optimizer": adagrad},
        "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "optimizer": adagrad},
        "training": training,
        "cluster": {"workers": 2, "servers": servers, "inject": inject},
        "run": {"dir": str(run), "allow_faults": True},
    }


@pytest.mark.slow
@pytest.mark.ray
def test_killed_workers_are_replaced_and_the_model_stays_the_same(
    ray_cluster: None, samples: Path, tmp_path: Path
) -> None:
    runs = [
        Trainer(
            JobConfig.from_dict(
                job(samples, tmp_path / str(number), inject, mode="sync", global_batch=256)
            )
        ).fit()
        for number, inject in enumerate(([], [KILL]))
    ]

    assert [run.metrics["worker_restarts"] for run in runs] == [0, 2]
    assert runs[0].metrics["model_digest"] == runs[1].metrics["model_digest"]


@pytest.mark.parametrize(
    "in_processes", [False, pytest.param(True, marks=(pytest.mark.slow, pytest.mark.ray))]
)
def test_hanging_workers_are_replaced_and_the_model_stays_the_same(
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    in_processes: bool,
) -> None:
    hangs = [{**HANG, "stage": "read"}, {**HANG, "index": 1, "at_step": 12}]
    config = job(samples, tmp_path / "hanging", hangs, mode="sync", global_batch=256)
    config["cluster"]["lease_timeout_seconds"] = 2.0
    if in_processes:
        request.getfixturevalue("ray_cluster")
        hanging = Trainer(JobConfig.from_dict(config)).fit()
    else:
        with ray_of_threads(), hanging_until_the_end(monkeypatch):
            hanging = Trainer(JobConfig.from_dict(config)).fit()
    config = job(samples, tmp_path / "undisturbed", [], mode="sync", global_batch=256)
    undisturbed = train_in_threads(JobConfig.from_dict(config))

    assert [run.metrics["worker_restarts"] for run in (undisturbed, hanging)] == [0, 2]
    assert undisturbed.metrics["model_digest"] == hanging.metrics["model_digest"]
    said = capsys.readouterr()
    for worker, doing in ((0, "reads"), (1, "computes")):
        assert f"is given up: worker {worker} has been at train batch" in said.err + said.out
        assert f"which it {doing}" in said.err + said.out


@contextmanager
def hanging_until_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A thread that hangs goes on when the job is over, as there is no process that ends it."""
    over = threading.Event()

    def hang(loop: Any, token: Token, stage: HangStage) -> None:
        if token.kind == "train" and loop._faults.hangs_at(token.step, stage):
            over.wait()

    monkeypatch.setattr(WorkerLoop, "_hang_if_due", hang)
    try:
        yield
    finally:
        over.set()


def test_batches_of_a_slow_worker_take_longer(samples: Path, tmp_path: Path) -> None:
    config = job(samples, tmp_path / "run", [SLOW, BOTH_SLOW], mode="async")
    # Kernels are compiled before, which takes as long for either.
    train_in_threads(JobConfig.from_dict(job(samples, tmp_path / "first", [], mode="async")))

    workers = train_in_threads(JobConfig.from_dict(config)).metrics["workers"]

    assert sum(worker["samples"] for worker in workers.values()) == 5000
    slow, other = workers["0"], workers["1"]
    assert slow["seconds"] / slow["batches"] > 3 * other["seconds"] / other["batches"]


@pytest.mark.slow
def test_bad_connections_change_nothing_of_the_model(samples: Path, tmp_path: Path) -> None:
    bad = [
        {"kind": kind, "between": [role, "server"], "probability": 0.03, **options}
        for role in ("worker", "coordinator")
        for kind, options in (("delay", {"seconds": 0.05}), ("drop", {}), ("duplicate", {}))
    ]

    runs = [
        train_in_threads(
            JobConfig.from_dict(
                job(samples, tmp_path / run, inject, servers=2, mode="sync", global_batch=256)
            )
        )
        for run, inject in (("good", []), ("bad", bad))
    ]

    wires = [run.metrics["wire_bytes"].values() for run in runs]
    received = [sum(server["received"] for server in servers) for servers in wires]
    assert received[0] < received[1], "messages came twice"
    assert [run.metrics["worker_restarts"] for run in runs] == [0, 0]
    assert runs[0].metrics["model_digest"] == runs[1].metrics["model_digest"]


def kill(role: str, index: int, at_step: int) -> dict[str, Any]:
    return {"kind": "kill", "role": role, "index": index, "at_step": at_step}


@pytest.mark.ray
def test_a_job_goes_on_after_servers_a_worker_and_the_coordinator_were_killed(
    ray_cluster: None, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = [
        # Two at once, the first again, a worker, and the coordinator.
        *(kill("server", index, 7) for index in (0, 1)),
        kill("server", 0, 9),
        kill("worker", 0, 11),
        kill("coordinator", 0, 14),
    ]
    configs = [
        JobConfig.from_dict(
            job(samples, tmp_path / name, inject, servers=2, mode="sync", global_batch=256)
        )
        for name, inject in (("calm", []), ("killed", kills))
    ]
    calm = train_in_threads(configs[0]).metrics
    killed = Trainer(configs[1]).fit().metrics

    assert killed["model_digest"] == calm["model_digest"]
    assert killed["samples_trained"] == calm["samples_trained"] == 5000
    assert killed["worker_restarts"] == 1, "who left and ran again did not die"
    causes = "; ".join(recovery["cause"] for recovery in killed["recoveries"])
    # What dies again before a step is applied belongs to the same return.
    for name, times in (("server 0", 2), ("server 1", 1), ("the coordinator", 1)):
        assert len(re.findall(rf"{name} \(pid \d+\) died", causes)) == times
    assert killed["redone_steps"] > 0
    assert killed["recovery_seconds"] > 0
    assert calm["recoveries"] == []
    # The servers had all steps that it had ordered.
    assert killed["recoveries"][-1]["redone_steps"] == 0
    said = capsys.readouterr().err
    died = r"worker 0 \(pid \d+\) died: .*It is replaced, and its batches are given out again"
    assert re.search(died, said)
    assert "the job goes on from there" in said
    assert "the job goes back to the job's beginning (step 0)" in said
    assert "the job goes on after" in said
    epoch = json.loads((tmp_path / "killed" / "epoch.json").read_text())["recovery_epoch"]
    assert epoch >= 3
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [r for line in lines for r in json.loads(line)["recoveries"]] == killed["recoveries"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"allow_faults": False}}, "refused unless run.allow_faults is true"),
        ({"inject": [{**SLOW, "index": 2}]}, r"cluster.inject.0.index must be below .* \(2\)"),
        (
            {"inject": [KILL, {**SLOW, "factor": 1.0}]},
            "cluster.inject.1: a slow worker needs a factor above 1",
        ),
        ({"inject": [{**SLOW, "kind": "slwo"}]}, "cluster.inject.0.kind .*did you mean 'slow'"),
        ({"inject": [{"index": 0}]}, "cluster.inject.0.kind is required"),
        ({"inject": [{**SLOW, "role": "server"}]}, "cluster.inject.0.role: .*'worker', got 'serv"),
        ({"inject": [{**KILL, "role": "driver"}]}, "cluster.inject.0.role: .*, got 'driver'"),
        ({"inject": [{**KILL, "index": []}]}, "cluster.inject.0.index"),
        ({"inject": [{**HANG, "role": "server"}]}, "cluster.inject.0.role: .*'worker', got 'serv"),
        ({"inject": [{**HANG, "index": 2}]}, r"cluster.inject.0.index must be below .* \(2\)"),
        ({"inject": [{**HANG, "stage": "push"}]}, "cluster.inject.0.stage"),
        ({"inject": [{**KILL, "at_stpe": 1}]}, "cluster.inject.0.at_stpe; did you mean 'at_step'"),
        (
            {"inject": [{**KILL, "role": "server"}]},
            r"cluster.inject.0.index must be below cluster.servers \(1\), got 1",
        ),
        (
            {"inject": [SLOW, {**KILL, "role": "coordinator"}]},
            "cluster.inject.1.index must be 0, as there is one coordinator, got 1",
        ),
        ({"inject": [{**DROP, "between": ["worker", "coordinator"]}]}, BETWEEN),
        ({"inject": [{**DROP, "between": ["server"]}]}, BETWEEN),
        (
            {"inject": [{**DROP, "between": ["worker", "driver"]}]},
            r"inject.0.between.1: .*'driver'",
        ),
        ({"inject": [{**DROP, "probability": 1.5}]}, "cluster.inject.0.probability"),
        ({"inject": [{**DROP, "seconds": 0.2}]}, "unknown key cluster.inject.0.seconds"),
        ({"inject": [{**DELAY, "seconds": 0}]}, "cluster.inject.0.seconds"),
        ({"inject": [{**DROP, "kind": "delay"}]}, "cluster.inject.0.seconds is required"),
    ],
)
def test_faults_that_cannot_be_obeyed_are_refused(
    samples: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    data = job(samples, tmp_path, changes.get("inject", [SLOW]), mode="async")
    data["run"] |= changes.get("run", {})

    with pytest.raises(ConfigError, match=message):
        JobConfig.from_dict(data)


def test_faults_of_connections_reach_the_processes_that_they_name(
    samples: Path, tmp_path: Path
) -> None:
    between = {"between": ["server", "coordinator"]}
    inject = [{**DROP, "to_seconds": 9}, {**DELAY, "from_seconds": 5}, {**DELAY, **between}, KILL]
    config = JobConfig.from_dict(job(samples, tmp_path, inject, mode="async"))

    worker = worker_faults(config, started=50.0).connections
    coordinator = coordinator_faults(config, started=50.0).connections

    delay = ConnectionFault(kind="delay", probability=0.01, seconds=0.2)
    assert worker == ConnectionFaults(
        faults=(
            ConnectionFault(kind="drop", probability=0.01, to_seconds=9.0),
            replace(delay, from_seconds=5.0),
        ),
        seed=3,
        started=50.0,
    )
    assert coordinator == ConnectionFaults(faults=(delay,), seed=3, started=50.0)
