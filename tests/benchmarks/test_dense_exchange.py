"""How dense parameters are carried: every way gives the same bits, and what the lines say."""

import json
from typing import Any

import pytest
from dense_exchange import main

from bench.dense_ways import Fleet
from bench.nodes import are_allowed


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(list(arguments)) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["name"] == "machine"
    return found[1:]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_ways_give_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")

    found = lines(capsys, "--quick")

    assert len(found) == 2 * 4
    assert len({line["digest"] for line in found}) == 1
    assert all(line["value"] > 0 and line["cpu_ms"] > 0 for line in found)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not are_allowed(), reason="nodes of a network take root")
def test_nodes_carry_what_is_pulled_and_pushed(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines(
        capsys, "--quick", "--ways=servers", "--servers=1", "--dense=500_000", "--mbit=400"
    )

    # Two pulls of 2 MB and four pushes, each way with heads and acknowledgements.
    assert 8 <= line["server_node_mb"][0] < 9
    assert 4 <= line["server_node_mb"][1] < 5
    assert 4 <= line["worker_node_mb"][1] < 5


def test_a_step_names_each_batch_once_on_servers_that_sum_and_the_sum_elsewhere() -> None:
    sizes = {"workers": 2, "servers": 3, "batches": 4, "dense": 5}

    assert [e.batch_id for e in Fleet(way="servers", **sizes).entries(2)[0]] == [8, 9, 10, 11]
    reduced = Fleet(way="all_reduce", **sizes)
    assert [[e.batch_id for e in named] for named in reduced.entries(2)] == [[2], [2]]
    assert [store.dense_size for store in reduced.stores()] == [3, 3]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--batches=5"], "a multiple of --workers"),
        (["--dense=0"], "--dense must be >= 1"),
        (["--beside", "--workers=2", "--servers=4"], "no more --servers than --workers"),
        (["--ways=none"], "knows servers, pulled_once, all_reduce, replicas"),
    ],
)
def test_wrong_options_are_refused(
    wrong: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)

    assert ended.value.code == 2
    assert text in capsys.readouterr().err
