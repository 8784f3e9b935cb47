"""Workers, in threads, that wait for something that is under way.

So a job neither ends before it, however fast it trains, nor takes longer than that something does.
"""

import math
import time
from collections.abc import Callable

import pytest

from worker.faults import Faults

# At each batch: steps go on meanwhile, as what is awaited may need some.
SECONDS = 0.4


def hold_back(
    monkeypatch: pytest.MonkeyPatch,
    is_awaited: Callable[[], bool],
    *,
    seconds: float = SECONDS,
    growth: float = math.inf,
) -> None:
    """Have each batch take so long while something is awaited, and no longer.

    Args:
        growth: by how many seconds each batch takes longer than the one before, up to `seconds`.
    """
    pause_of, held = Faults.pause, list[None]()

    def pause(faults: Faults, took: float, now: float) -> float:
        held.append(None)
        until = time.monotonic() + min(seconds, growth * len(held))
        while is_awaited() and time.monotonic() < until:
            time.sleep(0.002)
        return pause_of(faults, took, now)

    monkeypatch.setattr(Faults, "pause", pause)
