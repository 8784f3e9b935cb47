"""Spans of batches: each recorded once, and never more than the limits."""

import itertools
import json
from pathlib import Path

from scheduler.coordinator.batch_trace import WINDOW_SECONDS, BatchFile, BatchSpan, BatchTrace
from worker.protocol import Finished, Report, Token


def finished(batch_id: int, started_at: float) -> Finished:
    token = Token(step=batch_id // 2, batch_id=batch_id, attempt=0, at_step=0)
    return Finished(token, "done", samples=8, seconds=0.5, started_at=started_at)


def report(*ends: Finished, worker: int = 0) -> Report:
    return Report(worker, incarnation=0, sequence=1, finished=ends)


def span(batch: int, start: float) -> BatchSpan:
    return BatchSpan(worker=0, batch=batch, attempt=0, step=0, start=start, seconds=0.1, samples=8)


def read(path: Path) -> list[int]:
    return [json.loads(line)["batch"] for line in path.read_text().splitlines()]


def test_a_span_says_who_computed_which_batch_when() -> None:
    trace = BatchTrace()
    trace.add(report(finished(5, 100.0), worker=3))

    assert trace.take() == [
        BatchSpan(worker=3, batch=5, attempt=0, step=2, start=100.0, seconds=0.5, samples=8)
    ]
    assert trace.take() == []


def test_what_a_worker_says_again_is_recorded_once() -> None:
    trace = BatchTrace()
    trace.add(report(finished(0, 100.0)))
    trace.add(report(finished(0, 100.0), finished(1, 101.0)))

    assert [span.batch for span in trace.take()] == [0, 1]


def test_workers_do_not_hide_each_other() -> None:
    trace = BatchTrace()
    trace.add(report(finished(0, 100.0), worker=0))
    trace.add(report(finished(1, 99.0), worker=1))

    assert [span.batch for span in trace.take()] == [0, 1]


def test_what_was_not_measured_is_left_out() -> None:
    trace = BatchTrace()
    trace.add(report(Finished(Token(0, 0, 0, 0), "superseded")))

    assert trace.take() == []


def test_no_more_than_the_limit_waits_for_the_driver() -> None:
    trace = BatchTrace(limit=3)
    trace.add(report(*(finished(i, 100.0 + i) for i in range(10))))

    assert [span.batch for span in trace.take()] == [0, 1, 2]


def test_a_short_job_keeps_every_span(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    file = BatchFile(path)
    file.add([span(0, 10.0), span(1, 11.0)])
    file.add([span(2, 50.0)])

    assert read(path) == [0, 1, 2]


def test_a_long_job_keeps_whole_windows_spread_over_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    file = BatchFile(path, limit=100)
    for i in range(1000):  # 4 spans a window
        file.add([span(i, i * WINDOW_SECONDS / 4)])

    kept = read(path)
    assert 25 <= len(kept) <= 100
    windows = sorted({i // 4 for i in kept})
    assert kept == [4 * w + i for w in windows for i in range(4)]
    gaps = {b - a for a, b in itertools.pairwise(windows)}
    assert len(gaps) == 1
    assert windows[0] == 0
    assert windows[-1] >= 250 - 2 * gaps.pop()


def test_one_crowded_window_does_not_fill_the_file(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    file = BatchFile(path, limit=80)
    file.add([span(i, 10.0) for i in range(500)])

    assert read(path) == list(range(10))
