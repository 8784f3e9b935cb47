"""`synchromesh serve` says what takes long before it answers."""

from typing import Any

import pytest
from command_here import run_here

from embedding.kernels import compile_cache
from serving.errors import ServingError


@pytest.mark.parametrize("compiles", [True, False])
def test_who_waits_for_kernels_is_told(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        """As far as a server comes that has nothing to serve."""

        def __init__(self, options: Any) -> None:
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


def nothing(*arguments: Any) -> None:
    return None


class Lock:
    def acquire(self) -> None:
        """It is free."""
