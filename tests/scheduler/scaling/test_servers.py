"""How many servers a job should have."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.scaling.decisions import Scaling, ScalingOptions, Window, described, outcome_of
from scheduler.scaling.servers import ServerPolicy

GIB = 1 << 30
OPTIONS = ScalingOptions(windows=3, server_load=0.7, server_memory_bytes=10 * GIB)


def looks(policy: ServerPolicy, count: int, **figures: Any) -> list[Scaling]:
    window = Window(seconds=10, wanted=2, up=2, rate=100.0, **figures)
    return [decision for _ in range(count) for decision in policy.look(window)]


@pytest.mark.parametrize(
    ("figures", "after", "cause"),
    [
        ({"servers": 2, "server_load": 0.9}, 3, "load"),
        ({"servers": 2, "server_bytes": 9 * GIB}, 3, "memory"),
        ({"servers": 4, "server_bytes": 20 * GIB, "server_load": 0.8}, 10, "memory"),
        ({"servers": 4, "server_load": 1.0}, 6, "load"),
    ],
)
def test_there_are_as_many_as_memory_and_load_need(
    figures: dict[str, Any], after: int, cause: str
) -> None:
    policy = ServerPolicy(OPTIONS, least=1, most=16)

    assert looks(policy, 2, **figures) == []
    (decision,) = looks(policy, 1, **figures)

    assert (decision.before, decision.after, decision.cause) == (figures["servers"], after, cause)


def test_fewer_are_wanted_only_after_longer_and_with_room_left() -> None:
    policy = ServerPolicy(OPTIONS, least=1, most=16)
    idle = {"servers": 4, "server_load": 0.05, "server_bytes": GIB}
    nearly = {"servers": 2, "server_load": 0.25, "server_bytes": 5 * GIB}

    assert looks(policy, 8, **idle) == []
    (decision,) = looks(policy, 1, **idle)
    assert decision.after == 1
    assert looks(ServerPolicy(OPTIONS, least=1, most=16), 50, **nearly) == []


def test_what_it_needs_after_a_change_does_not_lead_back() -> None:
    """One that is just too full is no longer so with one more, which then is not too many."""
    policy = ServerPolicy(OPTIONS, least=1, most=16)
    (up,) = looks(policy, 3, servers=2, server_load=0.71)

    assert up.after == 3
    (came_of_it,) = looks(policy, 100, servers=3, server_load=0.71 * 2 / 3)
    assert came_of_it.number == up.number


def test_bounds_hold() -> None:
    assert looks(ServerPolicy(OPTIONS, least=1, most=2), 9, servers=2, server_load=1.0) == []
    assert looks(ServerPolicy(OPTIONS, least=2, most=4), 9, servers=2, server_load=0.0) == []


@pytest.mark.parametrize(
    ("cause", "before", "after", "share", "predicted", "realised"),
    [
        ("load", {"server_load": 0.9}, {"server_load": 0.58}, 0.9, 0.6, 0.58),
        ("memory", {"server_bytes": 9 * GIB}, {"server_bytes": 7 * GIB}, 0.9, 0.6, 0.7),
    ],
)
def test_a_decision_predicts_what_is_held_against_what_came_of_it(
    cause: str,
    before: dict[str, Any],
    after: dict[str, Any],
    share: float,
    predicted: float,
    realised: float,
) -> None:
    policy = ServerPolicy(OPTIONS, least=1, most=16)

    (decision,) = looks(policy, 3, servers=2, **before)
    while_rows_move = looks(policy, 2, servers=2, **before)
    (done,) = looks(policy, 3, servers=3, **after)

    assert (decision.cause, decision.realised, while_rows_move) == (cause, None, [])
    assert (decision.share, decision.predicted) == (pytest.approx(share), pytest.approx(predicted))
    assert done == replace(decision, realised=pytest.approx(realised))
    assert f"predicted {predicted:.0%}" in described(decision)
    assert f"{realised:.0%}" in outcome_of(done)
    assert f"{share:.0%} before" in outcome_of(done)


def test_nobody_says_what_came_of_a_number_that_somebody_else_has_changed() -> None:
    policy = ServerPolicy(OPTIONS, least=1, most=16)
    looks(policy, 3, servers=2, server_load=0.9)

    assert looks(policy, 1, servers=4, server_load=0.5) == []
    assert looks(policy, 8, servers=3, server_load=0.6) == []


def test_what_is_held_back_is_told_once_until_more_is_needed() -> None:
    policy = ServerPolicy(OPTIONS, least=1, most=16, held_back="servers can't change yet")

    (first,) = looks(policy, 30, servers=2, server_load=0.9)
    (second,) = looks(policy, 30, servers=2, server_bytes=20 * GIB)
    again = looks(policy, 30, servers=2, server_load=0.9)
    for _ in range(10):  # a load that comes and goes is told once, too
        again += looks(policy, 4, servers=2, server_load=0.6)
        again += looks(policy, 4, servers=2, server_load=0.9)
    content = looks(policy, 9, servers=2, server_load=0.6)
    (anew,) = looks(policy, 4, servers=2, server_load=0.9)

    assert (first.after, second.after, again, content, anew.after) == (3, 5, [], [], 3)
    assert described(first).endswith("; held back: servers can't change yet")
