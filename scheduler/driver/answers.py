"""Answers of servers and the coordinator; those that give none are lost."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

from scheduler.driver.processes import Processes, ProcessLostError, Who
from scheduler.driver.ray_calls import CALL_TIMEOUT_SECONDS, first_line

# What Ray raises for a process that is gone. One that can't be reached for now counts as gone, too:
# its successor is of another recovery epoch, so it does no harm where it lives on.
GONE = (RayActorError, OutOfMemoryError)


def answers_of(
    processes: Processes, calls: Mapping[Who, Any], *, seconds: float = CALL_TIMEOUT_SECONDS
) -> dict[Who, Any]:
    """Return what calls to processes came to.

    Args:
        calls: one a process.
        seconds: how long they may take together.

    Raises:
        ProcessLostError: names all who are gone, or have not answered by then.
        RayTaskError: what one of them raised.
    """
    if not calls:
        return {}
    _, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
    lost: dict[Who, str] = {}
    found: dict[Who, Any] = {}
    for who, call in calls.items():
        try:
            if call in late:
                raise GetTimeoutError
            found[who] = ray.get(call, timeout=CALL_TIMEOUT_SECONDS)
        except (*GONE, GetTimeoutError) as error:
            lost[who] = f"{processes.describe(who)} {how(error, seconds)}"
    if lost:
        raise ProcessLostError(lost)
    return found


def how(error: Exception, seconds: float) -> str:
    """Say what has befallen a process whose call raised this."""
    if isinstance(error, GetTimeoutError):
        return f"has not answered for {seconds:.0f} s: it hangs, or its node can't be reached"
    return f"died: {first_line(error)}"
