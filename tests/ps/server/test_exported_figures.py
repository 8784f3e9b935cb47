"""A server's figures as metrics, by table."""

from ps.server.exported_figures import server_figures
from ps.server.figures import ServerFigures, TableFigures
from runtime.process_figures import ProcessFigures


def test_a_server_s_figures_are_by_table() -> None:
    server = ServerFigures(
        step=9,
        dense_non_finite=6,
        tables={
            "user": TableFigures(rows=4, bytes=64),
            "item": TableFigures(rows=5, bytes=80, non_finite=7),
        },
        process=ProcessFigures(bytes_sent=11),
    )

    figures = {(f.name, f.labels.get("table")): f.value for f in server_figures(1, server)}

    assert figures["shard_step", None] == 9
    assert figures["bytes_sent", None] == 11
    assert figures["table_rows", "user"] == 4
    assert figures["table_bytes", "item"] == 80
    assert (figures["dense_non_finite", None], figures["table_non_finite", "item"]) == (6, 7)
    assert {(f.role, f.index) for f in server_figures(1, server)} == {("server", 1)}
