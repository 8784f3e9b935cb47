"""Figures of tables over all servers."""

from ps.server.figures import ServerFigures, TableFigures, added


def test_a_table_s_figures_are_added_over_the_servers_that_have_it() -> None:
    servers = [
        ServerFigures(tables={"a": TableFigures(rows=1, evicted=2, bytes=8)}),
        ServerFigures(tables={"a": TableFigures(rows=3, bytes=8), "b": TableFigures(rows=5)}),
    ]

    assert added(servers) == {
        "a": TableFigures(rows=4, evicted=2, bytes=16),
        "b": TableFigures(rows=5),
    }
    assert added([]) == {}
