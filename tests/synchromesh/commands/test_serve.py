"""`synchromesh serve` says what takes long before it answers."""

from typing import Any

import pytest
from command_here import run_here

from embedding.kernels import compile_cache
from serving.errors import ServingError
from serving.form.making import BaseProgress
from synchromesh.commands.serve import FormProgress


@pytest.mark.parametrize("compiles", [True, False])
def test_who_waits_for_kernels_is_told(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        """As far as a server comes that has nothing to serve."""

        def __init__(self, options: Any, when_making: Any) -> None:
            if compiles:
                monkeypatch.setattr("numba.core.caching.FunctionCache.load_overload", nothing)
                cache = object.__new__(compile_cache.SharedCache)
                cache._compiling = Lock()
                assert cache.load_overload("types", None) is None
                assert cache.load_overload("types", None) is None
            raise ServingError("there is nothing to serve")

    monkeypatch.setattr("serving.running.Serving", Stopped)
    done = run_here("serve", "runs/none", "--port", "0")

    assert (done.returncode, "there is nothing to serve" in done.stderr) == (2, True)
    assert done.stderr.count("compiling what computes") == compiles


def test_who_waits_for_a_form_is_told_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    progress = FormProgress(lambda: now)
    for seconds, rows in ((0.0, 0), (1.0, 100), (2.5, 1200), (5.0, 2000), (7.5, 4000)):
        now = 100.0 + seconds
        progress.tell(BaseProgress("full-000000000007", rows, 5000))
    for seconds, rows in ((8.0, 0), (9.9, 4000)):  # another one
        now = 100.0 + seconds
        progress.tell(BaseProgress("full-000000000007", rows, 5000))

    told = capsys.readouterr().err.splitlines()
    assert [line.partition("007: ")[2] for line in told] == [
        "1,200 of 5,000 rows after 2 s; it is kept",
        "4,000 of 5,000 rows after 8 s; it is kept",
    ]


def nothing(*arguments: Any) -> None:
    return None


class Lock:
    def acquire(self) -> None:
        """It is free."""
