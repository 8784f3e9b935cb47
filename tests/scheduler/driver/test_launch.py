"""Starting Ray: what a signal does meanwhile."""

import os
import signal
from typing import Any

import pytest
import ray

from scheduler.driver.launch import start_ray
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
