"""The live view of a job in a terminal: what one screen can say of the last interval."""

from datetime import timedelta
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.metrics import auc_text

# More workers than this would push everything else off the screen: the slowest are shown.
MOST_WORKERS = 8
MOST_BINS = 8
MOST_TABLES = 3
BAR_COLUMNS = 10


class LiveView:
    """A view at the bottom of a terminal; what is printed meanwhile appears above it.

    Args:
        name: of the job.
        total: samples to train; None: nobody knows.
        console: the terminal.
    """

    def __init__(self, name: str, total: int | None, console: Console) -> None:
        self._name = name
        self._total = total
        self._phase = ""
        self._samples = 0
        self._line: dict[str, Any] | None = None
        self._window: dict[str, Any] | None = None
        self._live = Live(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=2
        )

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        """Say what is going on."""
        self._phase = text

    def advance(self, samples: int) -> None:
        """Move the bar; the other figures stay until the interval ends."""
        self._samples = samples

    def show(self, line: dict[str, Any]) -> None:
        """Show an interval, a line of metrics.jsonl."""
        self._line = line
        self._window = [self._window, *line.get("windows", [])][-1]
        self._samples = line["samples"]

    def _render(self) -> RenderableType:
        return view(
            self._line,
            name=self._name,
            phase=self._phase,
            samples=self._samples,
            total=self._total,
            window=self._window,
        )


def view(
    line: dict[str, Any] | None,
    *,
    name: str,
    phase: str,
    samples: int,
    total: int | None,
    window: dict[str, Any] | None = None,
) -> RenderableType:
    """Return the view.

    Args:
        line: the last line of metrics.jsonl; None before the first.
        samples, total: trained so far, and of the whole job, where it has an end.
        window: of a stream, the last that was over.
    """
    title = Text.assemble((name, "bold"), "  ", phase)
    if line is None:
        return Group("", title)
    title = Text.assemble((name, "bold"), "  ", (line["mode"], "bold cyan"), "  ", phase)
    halves = Table.grid(expand=True, padding=(0, 2))
    halves.add_column(ratio=1)
    halves.add_column(ratio=1)
    count = line.get("all_workers", {}).get("count", len(line["workers"]))
    halves.add_row(_workers(line["workers"], count), _staleness(line["staleness_of_interval"]))
    return Group(
        "",
        title,
        _bar(line, samples, total),
        _figures(line),
        *([] if window is None else [_window(window)]),
        "",
        halves,
        "",
        _tables(line),
        _memory(line["peak_rss_bytes"]),
    )


def _bar(line: dict[str, Any], samples: int, total: int | None) -> RenderableType:
    if total is None:
        return Text(f"{samples:,} samples")
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    rate = line["samples"] / line["train_seconds"] if line["train_seconds"] > 0 else 0.0
    left = "-:--:--"
    if rate > 0:
        left = str(timedelta(seconds=round(max(0, total - samples) / rate)))
    done = min(1.0, samples / total) if total else 1.0
    grid.add_row(
        ProgressBar(total=max(total, 1), completed=samples),
        f"{done:4.0%}  {samples:,} of {total:,} samples  {left} left",
    )
    return grid


def _figures(line: dict[str, Any]) -> RenderableType:
    rate, loss, auc = line["samples_per_second"], line["train_loss"], line["eval_auc"]
    batches = [
        (name, f"{line['batches'][key]:,}")
        for name, key in (
            ("batches dropped", "dropped"),
            ("skipped", "skipped"),
            ("re-issued", "reissued"),
        )
    ]
    figures = [
        ("step", f"{line['global_step']:,}"),
        ("samples/s", "-" if rate is None else f"{rate:,.0f}"),
        ("loss", "-" if loss is None else f"{loss:.4f}"),
    ]
    # Of several tasks each has its own; the other one is that of the first.
    tasks = line.get("eval_tasks", {})
    if not tasks:
        shown = "-" if auc is None else auc_text(auc, line["eval_auc_error_bound"])
        figures.append(("AUC", shown))
    figures += [
        (f"AUC of {name}", auc_text(scores["auc"], scores["auc_error_bound"]))
        for name, scores in tasks.items()
    ]
    return Group(_named(figures), _named(batches))


def _window(window: dict[str, Any]) -> RenderableType:
    """Return how the newest window of a stream was predicted before it was trained."""
    tasks = window.get("tasks", ())
    auc = f"AUC of {tasks[0]['name']}" if tasks else "AUC"
    return _named(
        [
            (f"of {window['seconds']:g} s: {auc}", auc_text(window["auc"], None)),
            ("entropy", f"{window['normalized_entropy']:.3f}"),
            ("calibration", f"{window['calibration']:.3f}"),
            ("label rate", f"{window['label_rate']:.3f}"),
        ]
    )


def _named(figures: list[tuple[str, str]]) -> Text:
    text = Text()
    for name, value in figures:
        text.append(f"{name} ", "dim").append(value, "bold").append("   ")
    return text


def _plain_table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _share_bar(share: float) -> Bar:
    return Bar(size=1.0, begin=0.0, end=share, width=BAR_COLUMNS, color="cyan")


def _workers(workers: dict[str, dict[str, Any]], count: int) -> RenderableType:
    table = _plain_table("worker", "batch", "share")
    shown = sorted(workers.items(), key=lambda item: int(item[0]))
    if len(shown) > MOST_WORKERS:
        shown = sorted(shown, key=lambda item: -(item[1]["batch_seconds"] or 0.0))[:MOST_WORKERS]
    for number, worker in shown:
        seconds = worker["batch_seconds"]
        table.add_row(
            number + (" lost" if worker["lost"] else ""),
            "-" if seconds is None else f"{1000 * seconds:,.0f} ms",
            f"{worker['share']:.0%}",
            _share_bar(worker["share"]),
        )
    if count <= len(shown):
        return table
    return Group(table, Text(f"the slowest of {count} workers", "dim"))


def _staleness(histograms: dict[str, dict[str, int]]) -> RenderableType:
    """Data and parameter staleness side by side, by steps; the last bin is open."""
    table = _plain_table("stale", "data", "parameter")
    steps = sorted({int(value) for counts in histograms.values() for value in counts})
    totals = {kind: max(1, sum(counts.values())) for kind, counts in histograms.items()}
    for value in steps[:MOST_BINS]:
        rest = value == steps[:MOST_BINS][-1] and len(steps) > MOST_BINS
        share = {
            kind: sum(n for v, n in counts.items() if int(v) == value or (rest and int(v) > value))
            / totals[kind]
            for kind, counts in histograms.items()
        }
        table.add_row(
            f"≥ {value}" if rest else str(value),
            f"{share['data']:.0%}",
            f"{share['parameter']:.0%}",
            _share_bar(share["parameter"]),
        )
    return table


def _tables(line: dict[str, Any]) -> Text:
    rows, sizes = line["rows"], line["table_bytes"]
    names = sorted(rows, key=lambda name: -sizes[name])
    largest = ", ".join(f"{name} {rows[name]:,}" for name in names[:MOST_TABLES])
    total = f"{sum(rows.values()):,} in {len(rows)} tables ({decimal(sum(sizes.values()))})"
    return Text.assemble(("rows  ", "dim"), f"{total}: {largest}")


def _memory(peak_rss: dict[str, list[int]]) -> Text:
    largest = [f"{role} {decimal(max(sizes))}" for role, sizes in peak_rss.items() if sizes]
    return Text.assemble(("memory at most  ", "dim"), ", ".join(largest))
