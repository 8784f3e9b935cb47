"""What Ray says of nodes that are being drained."""

import pytest
import ray

from scheduler.driver.draining import draining_nodes


def test_nodes_come_with_their_deadlines_where_these_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"a" * 56: 1_700_000_000_500, "b" * 56: 0}
    state = ray._private.state.state
    monkeypatch.setattr(state, "get_draining_nodes", lambda: told)

    assert draining_nodes() == {"a" * 56: 1_700_000_000.5, "b" * 56: None}


def test_a_version_of_ray_that_has_another_interface_drains_no_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray._private.state, "state", object())

    assert draining_nodes() == {}
