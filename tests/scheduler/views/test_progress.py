"""What a person sees: a live view in a terminal, plain lines elsewhere, at any width and size."""

import io
from typing import Any

import pytest
from rich.console import Console

from scheduler.job.config import JobConfig
from scheduler.views.progress import Progress
from scheduler.views.terminal import MOST_WORKERS, LiveView, view
from worker.data.plan import Plan


def line(**changes: Any) -> dict[str, Any]:
    def worker(seconds: float | None, share: float, lost: bool = False) -> dict[str, Any]:
        return {"batch_seconds": seconds, "share": share, "lost": lost}

    return {
        "train_seconds": 10.0,
        "global_step": 1234,
        "mode": "gba",
        "samples": 2500,
        "samples_dropped": 0,
        "samples_per_second": 250.0,
        "train_loss": 0.45678,
        "eval_auc": 0.71234,
        "eval_auc_error_bound": 0.00004,
        "staleness": {"parameter": {"mean": 1.5}},
        "staleness_of_interval": {"data": {"0": 3, "1": 1}, "parameter": {"1": 4}},
        "batches": {"dropped": 17, "skipped": 0, "reissued": 23},
        "workers": {"0": worker(0.081, 0.75), "1": worker(0.32, 0.25), "2": worker(None, 0, True)},
        "rows": {"user": 1000, "item": 20},
        "table_bytes": {"user": 64000, "item": 1280},
        "peak_rss_bytes": {"worker": [5 << 20], "server": [6 << 20], "coordinator": [7 << 20]},
        **changes,
    }


def shown(metrics: dict[str, Any] | None, *, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view(metrics, name="job", phase="training", samples=2500, total=10_000))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_shows_every_figure_uncut(width: int) -> None:
    text = shown(line(), width=width)

    for figure in (
        "gba", "training", "25%", "2,500 of 10,000", "0:00:30 left", "step 1,234", "samples/s 250",
        "loss 0.4568", "AUC 0.7123", "dropped 17", "re-issued 23", "81 ms", "75%", "320 ms",
        "2 lost", "parameter", "100%", "1,020 in 2 tables", "user 1,000",
    ):  # fmt: skip
        assert figure in text
    assert "…" not in text
    assert all(len(row) <= width for row in text.splitlines())


def test_the_view_shows_the_last_window_of_a_stream_until_another_is_over() -> None:
    window = {
        "seconds": 10.0, "auc": 0.61234, "normalized_entropy": 0.91, "calibration": 1.02,
        "label_rate": 0.25,
    }  # fmt: skip
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    live = LiveView("job", None, console)
    live.show(line(windows=[{**window, "auc": 0.5}, window]))
    live.show(line(windows=[]))

    console.print(live._render())

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for figure in ("of 10 s: AUC 0.6123", "entropy 0.910", "calibration 1.020", "label rate 0.250"):
        assert figure in text
    assert "of 10 s" not in shown(line())


def test_before_the_first_interval_the_view_says_what_goes_on() -> None:
    assert "training" in shown(None)


def test_an_interval_in_which_nothing_happened_can_be_shown() -> None:
    nothing = line(
        train_seconds=0.0,
        train_loss=None,
        samples_per_second=None,
        eval_auc=None,
        workers={},
        staleness_of_interval={"data": {}, "parameter": {}},
        rows={},
        table_bytes={},
    )

    assert "samples/s -   loss -" in shown(nothing)
    assert "-:--:-- left" in shown(nothing)


def test_of_many_workers_the_slowest_are_shown() -> None:
    workers = {str(i): {"batch_seconds": i / 10, "share": 0.01, "lost": False} for i in range(99)}

    text = shown(line(workers=workers))
    assert "9,800 ms" in text
    assert "  100 ms" not in text
    assert "the slowest of 99 workers" in text
    assert len(text.splitlines()) < 14 + MOST_WORKERS


def test_far_staleness_is_gathered_in_the_last_row() -> None:
    counts = {str(i): 1 for i in range(20)}

    text = shown(line(staleness_of_interval={"data": counts, "parameter": counts}))
    assert "≥ 7   65%" in text


@pytest.fixture
def job() -> tuple[JobConfig, Plan]:
    config = JobConfig.from_dict(
        {
            "data": {"train": "a", "sparse": ["c"]},
            "model": {"type": "deepfm"},
            "run": {"dir": "r"},
        }
    )
    return config, Plan(files=(), batch_size=4, epochs=1, lanes=1)


def test_a_file_gets_plain_lines_without_escape_codes(job: tuple[JobConfig, Plan]) -> None:
    out = io.StringIO()
    with Progress(*job, console=Console(file=out)) as progress:
        progress.phase("training")
        progress.advance(100)
        progress.show(line())

    assert out.getvalue().splitlines() == [
        "training",
        "samples=2500/0 step=1234 samples_per_second=250 loss=0.4568 staleness=1.50 rows=1020"
        " eval_auc=0.7123",
    ]


def test_what_goes_on_after_a_loss_is_no_new_phase(job: tuple[JobConfig, Plan]) -> None:
    out = io.StringIO()
    with Progress(*job, console=Console(file=out)) as progress:
        for phase in ("training (started in 3.0 s)", "training (started in 3.0 s)", "saving"):
            progress.phase(phase)

    assert out.getvalue().splitlines() == ["training (started in 3.0 s)", "saving"]


def test_an_auc_is_shown_with_its_bound_where_that_shows(job: tuple[JobConfig, Plan]) -> None:
    out = io.StringIO()
    wide = line(eval_auc_error_bound=0.00312)
    with Progress(*job, console=Console(file=out)) as progress:
        progress.show(wide)
        progress.show(line(eval_auc=float("nan"), eval_auc_error_bound=float("nan")))

    assert [text.split()[-1] for text in out.getvalue().splitlines()] == [
        "eval_auc=0.7123+-0.0032",
        "eval_auc=none",
    ]
    assert "AUC 0.7123 +- 0.0032" in shown(wide)


def test_of_several_tasks_every_auc_says_of_which_it_is(job: tuple[JobConfig, Plan]) -> None:
    window = {
        "seconds": 10.0, "auc": 0.61234, "normalized_entropy": 0.91, "calibration": 1.02,
        "label_rate": 0.25, "tasks": [{"name": "click"}, {"name": "buy"}],
    }  # fmt: skip
    scores = {"auc": 0.71234, "auc_error_bound": 0.00001}
    tasks = {"click": scores, "buy": {**scores, "auc": 0.65}}
    out = io.StringIO()
    with Progress(*job, console=Console(file=out)) as progress:
        progress.show(line(eval_tasks=tasks, windows=[window]))
        progress.show(line(eval_tasks={}))

    first, second = out.getvalue().splitlines()
    assert first.split()[-4:] == [
        "window_auc.click=0.6123", "window_ne=0.910", "eval_auc.click=0.7123", "eval_auc.buy=0.6500"
    ]  # fmt: skip
    assert second.split()[-1] == "eval_auc=0.7123"
    text = shown(line(eval_tasks=tasks), width=120)
    assert "AUC of click 0.7123   AUC of buy 0.6500" in text
    assert "AUC 0" not in text
    console = Console(width=80, file=io.StringIO())
    console.print(view(line(), name="j", phase="", samples=0, total=None, window=window))
    assert "of 10 s: AUC of click 0.6123" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_without_an_interval_shows_no_rate_of_0(job: tuple[JobConfig, Plan]) -> None:
    out = io.StringIO()
    with Progress(*job, console=Console(file=out)) as progress:
        progress.show(line(samples_per_second=None, train_loss=None))

    assert out.getvalue() == ("samples=2500/0 step=1234 staleness=1.50 rows=1020 eval_auc=0.7123\n")


def test_a_terminal_gets_the_view_and_notes_stay_above_it(job: tuple[JobConfig, Plan]) -> None:
    out = io.StringIO()
    with Progress(*job, console=Console(file=out, force_terminal=True, width=80)) as progress:
        progress.phase("training")
        progress.show(line())
        progress.note("worker 3 died")

    assert "note: worker 3 died" in out.getvalue()
    assert "samples_per_second=" not in out.getvalue()
    assert "batches dropped" in out.getvalue().replace("\x1b[2m", "")


class FullDisk(io.StringIO):
    """A stream that takes nothing any more."""

    error = OSError(28, "No space left on device")

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [FullDisk.error, BrokenPipeError(32, "Broken pipe")])
def test_a_job_goes_on_where_nobody_can_be_told_of_it(
    job: tuple[JobConfig, Plan], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    stream = FullDisk()
    stream.error = error
    monkeypatch.setattr("sys.stderr", stream)

    with Progress(*job) as progress:
        progress.phase("training")
        progress.show(line())
        progress.note("worker 3 died")
