"""Curves of cost: what a point is, that its rows are there, and the lines that are printed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_growth import AXES, growth, main, points_of
from command_here import run_here

from bench.growth_fleet import Fleet
from bench.growth_job import Point, batches, fill
from ps.shard.shard import Shard

ROOT = Path(__file__).parents[2]
SMALL = Point(rows=1000, tables=3, dim=4, keys=7, shards=2, workers=2, batch=16)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_growth.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_every_axis_changes_its_field_alone() -> None:
    for axis in AXES:
        points = points_of(axis, quick=False)
        assert [getattr(point, axis.field) for point in points] == list(axis.values)
        same = {name for name in Point.__dataclass_fields__ if name != axis.field}
        assert all(len({getattr(point, name) for point in points}) == 1 for name in same)


def test_growth_is_1_in_proportion() -> None:
    assert growth(3.0, 6.0, 2.0) == 1.0
    assert growth(3.0, 3.0, 2.0) == 0.5


def test_shards_hold_all_rows_and_every_key_that_is_drawn_has_one() -> None:
    shards = [Shard(SMALL.store(), index) for index in range(2)]
    for shard in shards:
        fill(SMALL, shard)
    keys = [np.concatenate([shard.tables[t].export().keys for shard in shards]) for t in range(3)]
    assert [np.unique(k).size for k in keys] == [k.size for k in keys] == [333] * 3
    for batch in batches(SMALL, worker=1, count=2):
        for table, bags in enumerate(batch.sparse):
            assert bags.keys.size == SMALL.batch * SMALL.bag_lengths()[table]
            assert np.isin(bags.keys, keys[table]).all()


def test_a_sample_has_as_many_keys_as_were_asked_for() -> None:
    assert SMALL.bag_lengths() == [2, 2, 3]
    with pytest.raises(ValueError, match="3 tables need as many keys, got 2"):
        Point(tables=3, keys=2)


@pytest.mark.slow
def test_a_fleet_trains_the_batches_of_all_its_workers() -> None:
    with Fleet(SMALL) as fleet:
        cost = fleet.train(seconds=0.0)
        servers = fleet.stats()
    assert cost.samples == 2 * 2 * SMALL.batch
    assert [server.step for server in servers] == [4, 4]
    assert sum(t.rows for server in servers for t in server.tables.values()) == 999
    assert min(cost.worker, cost.server, cost.wall) > 0


@pytest.mark.slow
def test_every_point_and_the_worst_growth_are_printed() -> None:
    done = bench("--quick", "--only", "rows,keys")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [(line["name"], line.get("axis"), line.get("at")) for line in lines]
    assert kinds == [
        ("machine", None, None),
        *(("cost", "rows", at) for at in (20_000, 200_000)), ("growth", "rows", None),
        *(("cost", "keys", at) for at in (26, 100)), ("growth", "keys", None),
    ]  # fmt: skip
    assert (lines[2]["growth"], lines[5]["growth"]) == (lines[3]["value"], lines[6]["value"])


def test_mistakes_exit_2() -> None:
    for arguments, message in (
        (["--only", "rowz"], "got 'rowz'"),
        (["--repeats", "0"], "--repeats must be > 0, got 0"),
    ):
        done = run_here(*arguments, main=main)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
