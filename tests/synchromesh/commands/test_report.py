"""report.py as a user runs it: one page from whatever a run directory holds."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synchromesh.commands.main import main

CHARTS = (
    "Throughput", "Training loss", "AUC", "Batches by worker", "Data staleness",
    "Parameter staleness", "Rows by table", "Memory",
)  # fmt: skip
NOTHING = "Nothing of this was recorded."


def interval(i: int) -> dict[str, Any]:
    worker = {"batches": 2, "samples": 16, "batch_seconds": 0.1, "share": 0.5, "lost": False}
    return {
        "time": 1000.0 + i,
        "train_seconds": float(i),
        "global_step": 4 * i,
        "clock": 2 * i,
        "mode": "sync" if i < 3 else "gba",
        "learning_rate": {"model": 0.1},
        "samples": 32 * i,
        "samples_dropped": 0,
        "samples_skipped": 0,
        "samples_per_second": 32.0,
        "train_loss": 1 / i if i else None,
        "eval_auc": 0.5 + i / 100 if i else None,
        "eval_auc_error_bound": 0.002 if i else None,
        "eval_step": 4 * i if i else None,
        "staleness": {kind: {"mean": 1.0, "p99": 2} for kind in ("data", "parameter")},
        "staleness_of_interval": {"data": {"0": 3, "17": 1}, "parameter": {"1": 4}},
        "batches": {"dropped": 0, "skipped": 0, "reissued": i, "superseded": 0},
        "workers": {"0": worker, "1": worker},
        "shard_lag": [0, 1],
        "rows": {"<table>": 10 * i},
        "table_bytes": {"<table>": 1000 * i},
        "peak_rss_bytes": {"worker": [5, 6], "server": [7], "coordinator": [8]},
        "wire_bytes": {"sent_by_servers": [9 * i], "received_by_servers": [9 * i]},
    }


def span(i: int) -> dict[str, Any]:
    times = {"start": 999.0 + i / 2, "seconds": 0.2}
    return {"worker": i % 2, "batch": i, "attempt": 0, "step": i // 4, **times, "samples": 16}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of six intervals that is not finished."""
    path = tmp_path / "my-run"
    path.mkdir()
    (path / "job.yaml").write_text("name: my <job>\n")
    write(path / "metrics.jsonl", [interval(i) for i in range(6)])
    write(path / "batches.jsonl", [span(i) for i in range(12)])
    return path


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own
    return lambda *arguments: main(["report", *map(str, arguments)])


def card(page: str, title: str) -> str:
    found = re.search(rf"<h2>{title}</h2>.*?</section>", page, re.DOTALL)
    assert found is not None, title
    return found.group()


def test_a_page_has_every_chart_and_needs_no_network(run: Path, report: Callable[..., int]) -> None:
    assert report(run) == 0

    page = (run / "report.html").read_text()
    assert [title for title in CHARTS if NOTHING in card(page, title)] == []
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "my &lt;job&gt;" in page
    assert "&lt;table&gt;" in page
    assert "sync, gba" in page
    assert "0.5500 +- 0.0020" in page


def test_what_was_not_finite_stands_at_the_top(run: Path, report: Callable[..., int]) -> None:
    last = {
        "samples_skipped": 48,
        "skipped_by_reason": {"bad_file": 8, "non_finite": 40},
        "non_finite": {"a": 3, "b": 4},
        "dense_non_finite": 2,
    }
    write(run / "metrics.jsonl", [interval(1), interval(2) | last])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert "48 (8 bad_file, 40 non_finite)" in page
    found = re.findall(r"<b>(\d+)</b><span>updates of (.*?) left out, not finite<", page)
    assert found == [("7", "rows"), ("2", "dense blocks")]


def test_losses_have_a_table_and_who_had_none_has_no_card(
    run: Path, report: Callable[..., int]
) -> None:
    assert report(run) == 0
    assert "<h2>Losses and moves</h2>" not in (run / "report.html").read_text()
    loss = {
        "time": 3.0, "cause": "server 1 <died>", "from_step": 1200, "to_step": 1100,
        "redone_steps": 100, "redone_samples": 25600, "seconds": 4.1234,
    }  # fmt: skip
    write(run / "metrics.jsonl", [interval(1), interval(2) | {"recoveries": [loss]}])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    cells = re.findall("<td>(.*?)</td>", card(page, "Losses and moves"))
    assert cells == ["server 1 &lt;died&gt;", "1,200", "1,100", "100", "25,600", "4.12"]
    assert "<b>1</b><span>servers, coordinators or drivers lost, times<" in page
    write(run / "metrics.jsonl", [interval(1) | {"recoveries": [loss | {"promoted": [1, 3]}]}])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    cells = re.findall("<td>(.*?)</td>", card(page, "Losses and moves"))
    assert cells[-2:] == ["4.12", "1, 3"]


def test_windows_of_a_stream_and_how_it_drifts_have_charts(
    run: Path, report: Callable[..., int]
) -> None:
    def of(i: int) -> dict[str, Any]:
        scores = {"auc": 0.6, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": 1.1}
        window = {"begins": 990.0 + i, "seconds": 1, "samples": 32, "label_rate": 0.2, **scores}
        nothing = dict.fromkeys(scores)
        return interval(i) | {
            "stream": {"files_waiting": 0},
            "windows": [window if i < 4 else {**window, **nothing, "label_rate": None}],
            "new_keys_per_sample": {"<table>": None if i == 0 else 0.25},
        }

    titles = (
        "AUC before training, by window", "Normalised entropy, by window", "Label rate, by window",
        "New keys per sample",
    )  # fmt: skip
    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert [title for title in titles if NOTHING not in card(page, title)] == []
    write(run / "metrics.jsonl", [of(i) for i in range(6)])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert [title for title in titles if NOTHING in card(page, title)] == []


def test_a_failed_run_says_why(run: Path, tmp_path: Path, report: Callable[..., int]) -> None:
    (run / "failure.json").write_text('{"time": 1, "error": "server 0 <died>"}')
    out = tmp_path / "page.html"

    assert report(run, "--out", out) == 0
    assert "The job failed: server 0 &lt;died&gt;" in out.read_text()


def test_a_run_without_figures_has_a_page_that_says_so(
    run: Path, report: Callable[..., int]
) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "batches.jsonl").unlink()

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert "has written no figures yet" in page
    assert all(NOTHING in card(page, title) for title in CHARTS)


def test_a_run_of_one_step_has_its_charts(run: Path, report: Callable[..., int]) -> None:
    write(run / "metrics.jsonl", [interval(1)])
    write(run / "batches.jsonl", [span(0)])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert [title for title in CHARTS if NOTHING in card(page, title)] == []


def test_of_hundreds_of_workers_the_slowest_are_drawn(
    run: Path, report: Callable[..., int]
) -> None:
    workers = {
        str(i): {"batches": 1, "samples": 8, "batch_seconds": 0.1 + i, "share": 0.002}
        for i in range(500)
    }
    write(run / "metrics.jsonl", [{**interval(1), "workers": workers}])
    write(run / "batches.jsonl", [{**span(i), "worker": i, "seconds": 0.1 + i} for i in range(500)])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert "worker 499" in page
    assert "worker 490" not in page
    assert '"491 others"' in page


def test_figures_of_an_older_run_leave_charts_out(run: Path, report: Callable[..., int]) -> None:
    write(run / "metrics.jsonl", [{"time": 1.0, "samples": 5, "samples_per_second": 5.0}])

    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert NOTHING not in card(page, "Throughput")
    assert NOTHING in card(page, "Data staleness")


def test_what_is_not_a_run_is_refused(
    tmp_path: Path, report: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert report(tmp_path / "none") == 2
    assert "is not a directory" in capsys.readouterr().err


def test_a_page_that_can_not_be_written_is_an_error_without_a_page(
    run: Path, tmp_path: Path, report: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report(run, "--out", tmp_path / "file" / "page.html") == 2
    assert "can't be written" in capsys.readouterr().err

    folder = tmp_path / "folder"
    folder.mkdir()
    assert report(run, "--out", folder) == 2
    said = capsys.readouterr().err
    assert "can't be written" in said
    assert ".partial" not in said
    assert not any(folder.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "my-run"]


def test_without_bokeh_the_extra_is_named(
    run: Path,
    report: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.startswith(("scheduler.views.report.", "bokeh."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)

    assert report(run) == 2
    assert "synchromesh[report]" in capsys.readouterr().err
    assert not (run / "report.html").exists()
