"""How long it takes from a sample to its prediction: the lines that are printed, and the sums."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from online import main

from bench.online_times import Times, latencies, quantiles, trained_rate


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_figure_of_small_jobs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["name"]: line for line in lines}
    assert found.keys() >= {
        "batch_rate", "stream_rate", "stream_with_deltas_rate", "stream_against_batch",
        "delta_every_second", "arrival_to_readable", "arrival_to_applied", "arrival_to_served",
        "age_in_answers",
    }  # fmt: skip
    assert {line["over"] for line in lines if "over" in line} == {"disk", "sockets"}


@pytest.mark.parametrize("wrong", ["--rows=100", "--repeats=0", "--seconds=1"])
def test_sizes_that_say_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([wrong])

    assert ended.value.code == 2


def test_what_arrived_is_held_against_the_first_version_that_has_it(tmp_path: Path) -> None:
    stream, checkpoints = tmp_path / "stream", tmp_path / "checkpoints"
    stream.mkdir()
    for number in range(4):
        pq.write_table(pa.table({"a": range(10)}), stream / f"part-{number}.parquet")
    times = Times(checkpoints, stream)
    arrived = [at for at, _ in times.arrivals()]
    assert [rows for _, rows in times.arrivals()] == [10, 20, 30, 40]
    last = max(arrived)
    # A version with the first two files, one that was never served, one with three.
    times.readable = {5: (last + 1, 25), 7: (last + 2, 30), 8: (last + 3, 35)}
    times.applied = {5: last + 1.5, 8: last + 3.5}
    times.served = {5: last + 1.6, 8: last + 3.6}

    found = latencies(times, skip_seconds=0)

    right = [last + 1.6 - arrived[0], last + 1.6 - arrived[1], last + 3.6 - arrived[2]]
    assert found["served"] == pytest.approx(right)
    assert found["readable"][2] == pytest.approx(last + 2 - arrived[2])
    times.began = last
    with pytest.raises(RuntimeError, match="nothing that arrived was served"):
        latencies(times, skip_seconds=10)


def test_checkpoints_are_noted_by_when_they_got_their_name(tmp_path: Path) -> None:
    partial = tmp_path / ".partial-full-4"
    partial.mkdir()
    (partial / "manifest.json").write_text(json.dumps({"step": 4, "job": {"samples": 128}}))
    os.utime(partial, (5.0, 5.0))
    times = Times(tmp_path, tmp_path)
    times.look()
    assert times.readable == {}
    partial.rename(tmp_path / "full-4")
    times.look()
    assert times.readable == {4: (pytest.approx((tmp_path / "full-4").stat().st_ctime), 128)}


def test_rates_are_without_the_start_and_quantiles_in_order() -> None:
    lines = [
        {"train_seconds": 0.5, "samples": 10},
        {"train_seconds": 2.0, "samples": 100},
        {"train_seconds": 4.0, "samples": 500},
    ]
    assert trained_rate(lines) == 200.0
    with pytest.raises(RuntimeError, match="too short"):
        trained_rate(lines[:2])
    assert quantiles([1.0]) == (1.0, 1.0)
    assert quantiles([float(n) for n in range(101)]) == (50.0, 99.0)
