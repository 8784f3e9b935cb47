"""Which bundles a server and its standby are given."""

import pytest

from scheduler.driver.placement import pairs_of


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
