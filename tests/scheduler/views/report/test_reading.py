"""What a report finds in a run directory: finished, failed, running, torn, or nothing at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler import RunDirectoryError
from scheduler.views.report.reading import merge_intervals, read_run


def interval(time: float, **figures: Any) -> dict[str, Any]:
    return {"time": time, "train_seconds": time - 100, "samples": 8, **figures}


def write(run: Path, name: str, *lines: dict[str, Any]) -> None:
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_with_a_result_is_finished(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", interval(101))
    write(tmp_path, "result.json", {"samples_trained": 8})

    assert read_run(tmp_path).outcome == "finished"


def test_a_failed_run_says_why_without_colours(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", interval(101))
    write(tmp_path, "failure.json", {"time": 1, "error": "server 0 \x1b[36mdied\x1b[39m"})

    run = read_run(tmp_path)
    assert (run.outcome, run.state) == ("failed", "The job failed: server 0 died")


def test_a_run_without_an_end_says_how_old_its_figures_are(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", interval(101))

    run = read_run(tmp_path)
    assert run.outcome == "unfinished"
    assert "runs, or was killed" in run.state


def test_a_line_that_is_being_written_is_left_out_silently(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(interval(101)) + '\n{"time": 10')
    write(tmp_path, "batches.jsonl")

    run = read_run(tmp_path)
    assert len(run.intervals) == 1
    assert run.notes == []


def test_lines_that_can_not_be_read_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("junk\n" + json.dumps(interval(101)) + "\n[]\n")

    notes = " ".join(read_run(tmp_path).notes)
    assert "metrics.jsonl: 2 lines" in notes
    assert "batches.jsonl is missing" in notes
    assert "job.yaml is missing" in notes


@pytest.mark.parametrize(
    "damage",
    [
        {"time": "101"},
        {"samples": None},
        {"train_loss": "low"},
        {"workers": {"0": {"batches": 3}}},
        {"workers": [1]},
        {"staleness_of_interval": {"data": [0]}},
        {"rows": {"user": "many"}},
        {"shifts": 3},
    ],
    ids=str,
)
def test_a_line_of_metrics_that_says_nonsense_is_left_out_and_counted(
    tmp_path: Path, damage: dict[str, Any]
) -> None:
    write(tmp_path, "metrics.jsonl", interval(101), {**interval(102), **damage}, interval(103))

    run = read_run(tmp_path)

    assert [line["time"] for line in run.intervals] == [101, 103]
    assert any("metrics.jsonl: 1 lines can't be read" in note for note in run.notes)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "\udcff", "[]", '{"global_step": "x"}'],
    ids=["no", "half", "deep", "bytes", "list", "type"],
)
def test_a_result_that_can_t_be_read_is_said_so(tmp_path: Path, text: str) -> None:
    write(tmp_path, "metrics.jsonl", interval(101))
    (tmp_path / "result.json").write_bytes(text.encode(errors="surrogateescape"))

    run = read_run(tmp_path)

    assert run.result is None
    assert any("result.json" in note for note in run.notes)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"neither job\.yaml nor metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="not a directory"):
        read_run(tmp_path / "none")


def test_merged_intervals_keep_sums_and_gather_what_is_of_the_interval() -> None:
    def line(i: int) -> dict[str, Any]:
        worker = {"batches": 1, "samples": 8, "batch_seconds": 1.0 + i, "share": 1.0}
        return interval(
            100.0 + i,
            samples_per_second=float(i),
            train_loss=None if i == 0 else 0.5,
            staleness_of_interval={"data": {"0": 1, str(i): 1}},
            workers={"0": worker},
            shifts=[{"step": i}] if i % 2 == 0 else [],
            recoveries=[{"to_step": i}] if i < 3 else [],
        )

    merged = merge_intervals([line(i) for i in range(5)], 5, most=3)

    assert [m["time"] for m in merged] == [101.0, 103.0, 104.0]
    assert merged[0]["samples_per_second"] == 0.5
    assert merged[0]["train_loss"] == 0.5
    assert merged[0]["staleness_of_interval"]["data"] == {"0": 2, "1": 1}
    assert [m["shifts"] for m in merged] == [[{"step": 0}], [{"step": 2}], [{"step": 4}]]
    assert [len(m["recoveries"]) for m in merged] == [2, 1, 0]
    assert merged[1]["workers"]["0"] == {
        "batches": 2, "samples": 16, "batch_seconds": 3.5, "share": 1.0
    }  # fmt: skip


def test_merged_intervals_keep_every_evaluation_where_it_was_first_shown() -> None:
    scores = [None, (4, 0.5), (4, 0.5), (8, 0.75), (12, None), (12, None)]
    lines = [
        interval(float(i), eval_step=score and score[0], eval_auc=score and score[1])
        for i, score in enumerate(scores)
    ]

    (merged,) = merge_intervals(lines, 6, most=1)

    shown = [(e["time"], e["eval_step"], e["eval_auc"]) for e in merged["evaluations"]]
    assert shown == [(1.0, 4, 0.5), (3.0, 8, 0.75), (4.0, 12, None)]


def test_the_begin_is_that_of_the_first_batch(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", interval(105.0))
    span = {"worker": 0, "step": 0, "seconds": 1.0}
    write(tmp_path, "batches.jsonl", {**span, "start": 102.0}, {**span, "start": 99.0})

    run = read_run(tmp_path)
    assert run.began == 99.0
    assert [line["start"] for line in run.batches] == [99.0, 102.0]
