"""Tools that ask a running job while its coordinator is lost, and another one takes its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

import scheduler.driver.remote
from scheduler.driver.remote import RunningJob
from scheduler.errors import ControlError, NotRunningError
from scheduler.run.directory import CONTROL_FILE, JOB_FILE
from scheduler.run.lease import RunLease, is_held

FACTS = {"auth_mode": "disabled", "namespace": "n", "ray_address": "a", "coordinator": "first"}


class Cluster:
    """Coordinators by name, each with its answer; one that is dead raises."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.answers: dict[str, Any] = {"first": "one"}
        self.waits: list[float] = []
        self.now = 0.0
        self.say(FACTS)

    def say(self, facts: dict[str, str]) -> None:
        (self.run / CONTROL_FILE).write_text(json.dumps(facts))

    def get_actor(self, name: str, namespace: str) -> Any:
        if name not in self.answers:
            raise ValueError(f"no actor is called {name}")
        return SimpleNamespace(look=SimpleNamespace(remote=lambda told: name))

    def get(self, name: str, timeout: float) -> Any:
        if self.answers[name] is None:
            raise ActorDiedError
        return self.answers[name]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)
        if len(self.waits) == 3 and "second" in self.answers:
            self.say({**FACTS, "coordinator": "second"})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / JOB_FILE).write_text("{}")
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(scheduler.driver.remote, "ray", cluster)
    monkeypatch.setattr(scheduler.driver.remote, "time", cluster)
    return cluster


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[RunLease]:
    lease = RunLease(tmp_path, job="j")
    yield lease
    lease.close()


def test_who_asks_a_job_waits_for_the_coordinator_that_takes_another_s_place(
    cluster: Cluster, driver: RunLease
) -> None:
    job = RunningJob(cluster.run, FACTS)
    assert job.status() == "one"
    cluster.answers |= {"first": None, "second": "two"}
    assert job.status() == "two"
    del cluster.answers["first"]
    cluster.say(FACTS)
    cluster.waits.clear()
    assert RunningJob(cluster.run, FACTS).status() == "two", "it had no actor to begin with"


def test_a_job_that_has_no_other_coordinator_yet_has_not_ended(
    cluster: Cluster, driver: RunLease
) -> None:
    job = RunningJob(cluster.run, FACTS)
    cluster.answers["first"] = None
    with pytest.raises(ControlError, match="has lost its coordinator and has no other one yet"):
        job.status()
    assert 19 < cluster.now < 22


def test_where_no_driver_holds_the_run_directory_the_job_has_ended(cluster: Cluster) -> None:
    job = RunningJob(cluster.run, FACTS)
    cluster.answers["first"] = None
    with pytest.raises(NotRunningError, match="has ended: The actor died"):
        job.status()
    assert cluster.waits == []


def test_a_run_directory_is_held_as_long_as_its_driver_lives(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    lease = RunLease(tmp_path, job="j")
    assert is_held(tmp_path)
    lease.close()
    assert not is_held(tmp_path)
