"""Servers that are equally busy: a job whose hot keys lie on one of them, and who decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from held_end import order
from ray_of_threads import RayOfThreads

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from ps.routing import Routing
from scheduler import JobConfig, Trainer
from scheduler.coordinator.events import EndOfTrainingWanted
from scheduler.coordinator.status import Status
from scheduler.driver.rebalancing import Rebalancer
from scheduler.driver.supervisor import Supervisor
from scheduler.job.config import ClusterConfig


@pytest.fixture(scope="module")
def skewed_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids by Zipf, of which the first server of two has the frequent ones."""
    path = tmp_path_factory.mktemp("skewed") / "train.parquet"
    rng = np.random.default_rng(5)
    ids = np.arange(4000)
    ids = ids[np.argsort(buckets_of(ids) >= NUM_BUCKETS // 2, kind="stable")]
    ranks = rng.zipf(1.4, (8, 6144)) % ids.size
    columns = {f"f{number}": ids[column] for number, column in enumerate(ranks)}
    label = (rng.random(6144) < 0.2 + 0.2 * (ranks[0] % 3)).astype(np.int8)
    pq.write_table(pa.table({"label": label, **columns}), path, row_group_size=1024)
    return path


def job(samples: Path, run: Path, **cluster: Any) -> JobConfig:
    return JobConfig.from_dict(
        {
            "seed": 3,
            "data": {
                "train": str(samples),
                "sparse": [{"column": f"f{n}", "table": "ids"} for n in range(8)],
                "batch_size": 128,
                "epochs": 10_000,
            },
            "embedding": {"dim": 8},
            "model": {"type": "deepfm", "mlp": [8]},
            "training": {"mode": "sync", "global_batch": 256},
            "cluster": {
                "workers": 2,
                "servers": 2,
                "scaling": {"window_seconds": 0.3, "windows": 2, "hold_seconds": 1000},
                **cluster,
            },
            "checkpoint": {"every_seconds": None},
            "run": {"dir": str(run), "progress_every_seconds": 0.3},
        }
    )


def test_hot_buckets_of_one_server_move_and_the_load_is_even_then(
    jobs_in_threads: RayOfThreads,
    skewed_samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job ends once it is known what came of it."""
    status_of = Supervisor.status

    def status(supervisor: Supervisor) -> Any:
        if any(each.realised is not None for each in supervisor.rebalancer.done.values()):
            order(supervisor, EndOfTrainingWanted())
        return status_of(supervisor)

    monkeypatch.setattr(Supervisor, "status", status)

    result = Trainer(job(skewed_samples, tmp_path / "run", rebalance="auto")).fit().metrics

    (decision,) = result["rebalancings"]
    assert decision["skew"] > 1.25
    assert decision["predicted"] < 1 + (decision["skew"] - 1) / 2
    assert decision["realised"] < 1 + (decision["skew"] - 1) / 2
    assert decision["held_back"] is None
    (move,) = result["server_moves"]
    assert (move["before"], move["after"], move["buckets"]) == (2, 2, decision["buckets"])
    assert [recovery["kind"] for recovery in result["recoveries"]] == ["move"]
    assert result["redone_steps"] == 0
    assert result["samples_trained"] == 128 * result["ledger"]["applied"]
    said = capsys.readouterr().err
    assert "2 servers share buckets out otherwise" in said
    assert "times the mean load" in said


class Asked:
    """A rebalancer and what is asked of it, with servers that count what they are told to."""

    def __init__(self, **cluster: Any) -> None:
        self.routing = Routing.even(2)
        self.counted = [np.zeros(NUM_BUCKETS, np.int64) for _ in range(2)]
        self.asked = self.now = 0
        self.ordered: list[np.ndarray] = []
        self.said: list[str] = []
        self.rebalancer = Rebalancer(
            ClusterConfig.model_validate(
                {"scaling": {"window_seconds": 10, "windows": 2}, **cluster}
            ),
            loads=self._loads,
            order=self.ordered.append,
            note=self.said.append,
            clock=lambda: self.now,
        )

    def _loads(self) -> list[np.ndarray]:
        self.asked += 1
        return [counts.copy() for counts in self.counted]

    def look(self, *, busy: bool = False, **status: Any) -> None:
        self.now += 10
        hot = slice(0, 40)
        self.counted[0][:2048] += 10
        self.counted[0][hot] += 2000
        self.counted[1][2048:] += 10
        self.rebalancer.look(Status(**status), self.routing, busy=busy)


def status(**values: Any) -> dict[str, Any]:
    return {"mode": "sync", **values}


def test_who_decides_is_asked_once_a_window_and_only_if_it_is_wanted() -> None:
    never, auto = Asked(), Asked(rebalance="auto")
    for asked in (never, auto):
        asked.look(**status())
        asked.now -= 6
        asked.look(**status())

    assert (never.asked, auto.asked) == (0, 1)


def test_hot_buckets_are_ordered_to_move_once_some_windows_say_so() -> None:
    asked = Asked(rebalance="auto")
    for _ in range(3):
        asked.look(**status())

    (buckets,) = asked.ordered
    assert 0 < np.count_nonzero(buckets != asked.routing.buckets) <= 40
    (decision,) = asked.rebalancer.news()
    assert decision["time"] > 0
    assert decision["realised"] is None
    assert asked.rebalancer.skew == pytest.approx(decision["skew"])
    assert asked.rebalancer.news() == []
    assert "times the mean load" in asked.said[0]


@pytest.mark.parametrize("why", [{"busy": True}, status(paused=True), status(evaluating=True)])
def test_what_holds_the_job_up_is_in_no_window(why: dict[str, Any]) -> None:
    asked = Asked(rebalance="auto")
    for _ in range(10):
        asked.look(**status())
        asked.look(**{**status(), **why})

    assert asked.ordered == []


def test_another_epoch_begins_windows_anew() -> None:
    asked = Asked(rebalance="auto")
    for _ in range(4):
        asked.look(**status())
        asked.look(**status())
        asked.rebalancer.begin_epoch()

    assert asked.ordered == []
