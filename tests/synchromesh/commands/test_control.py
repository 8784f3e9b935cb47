"""What `synchromesh control RUN status` tells."""

from types import SimpleNamespace

import pytest

from scheduler.coordinator.status import Status
from scheduler.scaling.decisions import ScalingView
from synchromesh.commands import control


@pytest.mark.parametrize("automatic", [True, False])
def test_why_there_are_as_many_workers_is_told_while_the_job_decides_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], automatic: bool
) -> None:
    monkeypatch.setattr(control, "RATE_SECONDS", 0.0)
    status = Status(workers_automatic=automatic, scaling=ScalingView(why="2 are the most"))

    control._show_status(SimpleNamespace(status=lambda: status), False)

    assert ("2 are the most" in capsys.readouterr().out) == automatic
