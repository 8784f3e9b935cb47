"""Starting Ray: what a signal does meanwhile; where processes listen."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from scheduler.driver.launch import Launcher, start_ray
from scheduler.errors import StartError
from scheduler.job.config import ClusterConfig


def start(monkeypatch: pytest.MonkeyPatch, init: Any) -> Any:
    """Start Ray with another `ray.init`; return the SIGTERM handler of then."""
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        start_ray(ClusterConfig(), namespace="x")
    finally:
        after = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        assert after == before
    return after


def test_a_job_that_is_stopped_while_ray_starts_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray sets a handler of its own, which ends the process with status 15 and no word."""

    def init(**_: Any) -> None:
        def handler(number: int, _: Any) -> None:
            raise SystemExit(number)

        signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        start(monkeypatch, init)


def test_other_exits_of_ray_go_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        start(monkeypatch, init)


def test_the_callers_handler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))


@pytest.mark.parametrize(("address", "beyond"), [("10.0.0.1:6379", True), (None, False)])
def test_who_joins_a_cluster_listens_for_nodes_that_may_come(
    monkeypatch: pytest.MonkeyPatch, address: str | None, beyond: bool
) -> None:
    """A job may begin where the cluster is a head alone, and its autoscaler adds nodes later."""
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    handle = SimpleNamespace(
        address=SimpleNamespace(remote=lambda: "here"),
        open_network_here=SimpleNamespace(remote=lambda: "network"),
    )

    asked = Launcher(ClusterConfig(), mixed_cpus=False, run="x")._asked_for_address(handle)

    assert asked == ("network" if beyond else "here")


@pytest.mark.parametrize(
    ("cluster", "there", "needed"),
    [
        ({"workers": 2, "worker_gpus": 1}, 1, 2),
        ({"workers": 3, "worker_gpus": 0.4}, 1, 2),
        ({"workers": 11, "worker_gpus": 0.1}, 1, 2),
        ({"workers": 10, "worker_gpus": 0.1}, 1, None),
        ({"workers": 8, "autoscale": True, "worker_gpus": 1}, 1, None),
        ({"workers": 8}, 0, None),
    ],
)
def test_a_machine_with_too_few_gpus_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], there: int, needed: int | None
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(there)})
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    if needed is None:
        start_ray(ClusterConfig(**cluster), namespace="x")
    else:
        with pytest.raises(StartError, match=f"need {needed} GPUs, and Ray finds {there} on this"):
            start_ray(ClusterConfig(**cluster), namespace="x")

    assert bool(ended) == (needed is not None)
