"""Which bundles a server and its standby are given, and what processes ask Ray for."""

from typing import Any

import pytest

import scheduler.driver.placement
from scheduler.driver.placement import Placement, pairs_of
from scheduler.job.config import ClusterConfig


@pytest.mark.parametrize(
    "nodes", ["abab", "aabb", "abcabc", "aabbcc", "aaabbb", "abcd", "aaabbcdd", "bacdbadc"]
)
def test_a_standby_is_on_another_node_than_its_server_where_that_is_possible(nodes: str) -> None:
    pairs = pairs_of(nodes)

    assert sorted(bundle for pair in pairs for bundle in pair) == list(range(len(nodes)))
    assert all(nodes[first] != nodes[second] for first, second in pairs)


def test_servers_are_not_all_on_one_node_and_standbys_on_the_other() -> None:
    assert {"abab"[first] for first, _ in pairs_of("abab")} == {"a", "b"}


def test_where_one_node_has_more_than_half_some_pairs_are_on_it() -> None:
    pairs = pairs_of("aaab")

    assert sum("aaab"[first] == "aaab"[second] for first, second in pairs) == 1


@pytest.mark.parametrize("own_cluster", [True, False])
@pytest.mark.parametrize("gpus", [0, 0.5, 1])
def test_workers_alone_ask_for_gpus_also_those_that_nothing_is_held_for(
    monkeypatch: pytest.MonkeyPatch, gpus: float, own_cluster: bool
) -> None:
    groups: list[Any] = []

    def placement_group(bundles: Any, **_: Any) -> None:
        groups.append(bundles)

    module = scheduler.driver.placement
    monkeypatch.setattr(module, "placement_group", placement_group)
    monkeypatch.setattr(module, "PlacementGroupSchedulingStrategy", lambda **_: None)

    placement = Placement(ClusterConfig(workers=2, worker_gpus=gpus), own_cluster=own_cluster)

    packed, spread = groups
    assert [bundle.get("GPU", 0) for bundle in packed] == [0, gpus, gpus]
    assert all("GPU" not in bundle for bundle in spread)
    for index in (1, 2):  # the second one is beyond the planned ones
        options = placement.options("worker", index)
        assert options.get("num_gpus", 0) == gpus
        assert "GPU" not in options.get("resources", {})
    assert "num_gpus" not in placement.options("server", 0)
    assert "num_gpus" not in placement.options("coordinator", 0)
