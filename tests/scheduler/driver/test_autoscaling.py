"""A running job has as many workers as pay, and says why."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from held_back import hold_back
from held_end import count_hand_overs, hold_the_end
from small_dlrm import small_dlrm

import scheduler.driver.autoscaling
import scheduler.driver.placement
from ps.server.figures import ServerFigures
from runtime.process_figures import ProcessFigures
from scheduler import JobConfig, Trainer
from scheduler.coordinator.events import WorkersWanted
from scheduler.coordinator.state import WorkerFigures
from scheduler.coordinator.status import ServersView, Status
from scheduler.driver.autoscaling import Autoscaler
from scheduler.driver.placement import Placement
from scheduler.scaling.decisions import Scaling, ScalingView, Window


def job(samples: Path, run: Path, **cluster: Any) -> JobConfig:
    sections: dict[str, Any] = {
        "data": {"epochs": 5},
        "training": {"mode": "async"},
        "cluster": {"workers": 1, "servers": 1, "autoscale": True, **cluster},
        "run": {"progress_every_seconds": 0.1},
    }
    return JobConfig.from_dict(small_dlrm(samples, run, **sections))


class Scripted:
    """A policy that wants another worker at its second window, and one less at its fifth."""

    why = "so it is written"
    latest = 0  # window of any of them

    def __init__(self, options: Any, **bounds: int) -> None:
        self.looks = Scripted.latest = 0

    def restarted(self) -> None:
        pass

    def look(self, now: float, window: Window) -> list[Scaling]:
        self.looks = Scripted.latest = self.looks + 1
        if self.looks not in (2, 5):
            return []
        change = 1 if self.looks == 2 else -1
        return [
            Scaling(
                number=self.looks,
                role="worker",
                before=window.wanted,
                after=window.wanted + change,
                cause="gain" if change > 0 else "idle",
                reason=self.why,
                rate=window.rate,
                predicted=2 * window.rate,
            )
        ]


def test_a_job_grows_and_shrinks_and_trains_every_sample_once(
    jobs_in_threads: None, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler.driver.autoscaling, "WorkerPolicy", Scripted)
    scaling = {"window_seconds": 0.05, "windows": 2, "server_load": 0.0001}
    bounds = {"max_workers": 2, "max_servers": 3}
    config = job(samples, tmp_path / "run", **bounds, scaling=scaling)
    moves = count_hand_overs(monkeypatch)

    hold_back(monkeypatch, lambda: not moves or Scripted.latest <= 5, seconds=0.02)
    hold_the_end(monkeypatch, lambda: bool(moves), at_step=lambda: 300)  # of 395

    metrics = Trainer(config).fit().metrics

    lines = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = [each for line in lines for each in line["scalings"]]
    assert metrics["samples_trained"] == 5000 * config.data.epochs
    assert metrics["ledger"]["applied"] == metrics["global_step"]
    of_workers = [d for d in metrics["scalings"] if d["role"] == "worker"]
    assert [(d["before"], d["after"]) for d in of_workers] == [(1, 2), (2, 1)]
    of_servers = [d for d in metrics["scalings"] if d["role"] == "server"]
    first = of_servers[0]
    assert (first["before"], first["after"], first["held_back"]) == (1, 3, None)
    move = metrics["server_moves"][0]
    assert (move["before"], move["after"]) == (1, 3)
    assert [d["number"] for d in told if d["role"] == "worker"] == [2, 5]
    assert {line["workers_wanted"] for line in lines} == {1, 2}
    assert metrics["worker_restarts"] == 0
    assert metrics["redone_steps"] == 0


class Watched:
    """A job whose status a test makes up; what is ordered and shown is kept."""

    def __init__(self, **cluster: Any) -> None:
        self.now = 0.0
        self.orders: list[WorkersWanted] = []
        self.server_orders: list[int] = []
        self.views: list[ScalingView] = []
        self.notes: list[str] = []
        self.samples = 0
        self.autoscaler = Autoscaler(
            job(Path("x"), Path("run"), **{"workers": 2, "max_workers": 8, **cluster}),
            planned_samples=10**9,
            order=self.orders.append,
            order_servers=self.server_orders.append,
            show=self.views.append,
            note=self.notes.append,
            clock=lambda: self.now,
        )

    def passes(self, seconds: int, *, workers: int = 2, rate: int = 100, **status: Any) -> None:
        """Let time pass, second by second."""
        lost = status.pop("lost", set())
        for _ in range(seconds):
            self.now += 1
            self.samples += rate
            process = ProcessFigures(stage_seconds={"wait_rows": 0.1 * self.now, "wait_lease": 0.0})
            figures = {
                "num_workers": workers,
                "workers": {
                    n: WorkerFigures(process=process, lost=n in lost) for n in range(workers)
                },
                "cpu_seconds": 0.2 * self.now,
                "workers_automatic": True,
                "mode": "async",
            }
            found = Status(**{**figures, **status})
            found.samples.applied = self.samples
            server = ServerFigures(
                process=ProcessFigures(stage_seconds={"apply": 0.25 * self.now}), pid=7
            )
            self.autoscaler.look(found, lambda server=server: [server])  # type: ignore[misc]


def test_what_a_job_measures_becomes_the_windows_of_a_decision() -> None:
    watched = Watched()

    watched.passes(60)

    assert watched.orders == [WorkersWanted(4, by_policy=True)]
    last = watched.views[-1].last
    assert last is not None
    assert last.rate == pytest.approx(100)
    assert last.figures == {
        "busy": pytest.approx(0.9),
        "starved": 0.0,
        "server_load": pytest.approx(0.25),
        "server_bytes": 0,
        "coordinator_load": pytest.approx(0.2),
    }
    assert "workers 2 to 4" in watched.notes[0]

    watched.passes(50, workers=4, rate=190)

    assert watched.notes[1] == "workers 2 to 4: samples/s 100 before, 190 after"
    assert [d["realised"] for d in watched.autoscaler.history.news()][:1] == [pytest.approx(190)]


@pytest.mark.parametrize(
    "status",
    [{"workers_automatic": False}, {"trained": True}, {"paused": True}, {"evaluating": True}],
)
def test_nothing_is_decided_while_the_job_is_held_or_in_other_hands(status: dict[str, Any]) -> None:
    watched = Watched()

    watched.passes(200, **status)

    assert watched.orders == []


@pytest.mark.parametrize(("automatic", "orders"), [(True, [3]), (False, [])])
def test_servers_are_ordered_where_the_policy_decides_on_them(
    automatic: bool, orders: list[int]
) -> None:
    """They apply a quarter of the time, a tenth is wanted."""
    watched = Watched(servers=1, max_servers=4, scaling={"server_load": 0.1})

    view = ServersView(wanted=1, automatic=automatic)
    watched.passes(60, servers_view=view, workers_automatic=False)

    assert watched.server_orders == orders
    assert watched.orders == [], "workers are in other hands"


def test_after_a_change_of_mode_or_epoch_windows_begin_anew() -> None:
    watched = Watched()
    watched.passes(35)
    watched.passes(1, mode_epoch=1)
    watched.passes(35, mode_epoch=1)
    watched.autoscaler.restarted()
    watched.passes(35, mode_epoch=1)
    assert watched.orders == []

    watched.passes(20, mode_epoch=1)

    assert len(watched.orders) == 1


def test_in_sync_no_more_workers_are_wanted_than_a_step_has_batches() -> None:
    watched = Watched()

    watched.passes(100, mode="sync")

    assert watched.orders == []
    assert "a step has 2 batches" in watched.views[-1].why


def test_a_worker_that_is_lost_is_not_up() -> None:
    watched = Watched()

    watched.passes(100, lost={1})

    assert watched.orders == []
    assert watched.views[-1].why == "1 of 2 workers are not at work yet"


# Placement ----------------------------------------------------------------------------------------


def placed(monkeypatch: pytest.MonkeyPatch, **cluster: Any) -> tuple[Placement, list[Any]]:
    groups: list[Any] = []

    def group(bundles: Any, **options: Any) -> Any:
        groups.append((bundles, options))
        return SimpleNamespace()

    monkeypatch.setattr(scheduler.driver.placement, "placement_group", group)
    monkeypatch.setattr(
        scheduler.driver.placement, "PlacementGroupSchedulingStrategy", lambda **options: options
    )
    config = job(Path("x"), Path("run"), **cluster).cluster
    return Placement(config, own_cluster=False), groups


ROLES = {
    "resources": {"server": {"ps": 1}, "worker": {"worker": 1}, "coordinator": {"coordinator": 1}},
    "labels": {"worker": {"ray.io/market-type": "in(spot,on-demand)"}, "server": {"role": "ps"}},
    "worker_cpus": 8,
}


def test_a_job_that_scales_holds_places_for_the_least_workers_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placement, groups = placed(
        monkeypatch, workers=5, min_workers=2, max_workers=9, servers=2, **ROLES
    )

    (packed, of_packed), (spread, of_spread) = groups
    worker = {"CPU": 8, "worker": 1}
    labels = {"ray.io/market-type": "in(spot,on-demand)"}
    assert packed == [{"CPU": 0.25, "coordinator": 1}, worker, worker]
    assert of_packed["bundle_label_selector"] == [{}, labels, labels]
    assert spread == [{"CPU": 0.25, "ps": 1}] * 2
    assert of_spread["bundle_label_selector"] == [{"role": "ps"}] * 2
    assert (
        placement.options("worker", 1)["scheduling_strategy"]["placement_group_bundle_index"] == 2
    )
    assert placement.options("worker", 2) == {
        "num_cpus": 8,
        "resources": {"worker": 1},
        "label_selector": labels,
    }


def test_any_other_job_holds_a_place_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    _, groups = placed(monkeypatch, workers=3, autoscale=False)

    (packed, options), _ = groups
    assert len(packed) == 4
    assert "bundle_label_selector" not in options
