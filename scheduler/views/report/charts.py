"""Charts of a run, drawn with Bokeh: one function each, all over seconds since its begin."""

from collections.abc import Callable, Iterable
from typing import Any

from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d, RangeTool
from bokeh.palettes import Category10, Viridis
from bokeh.plotting import figure

from scheduler.run.interval_figures import indexed
from scheduler.views.report.reading import Line, RunData

COLORS = Category10[10]
MODE_COLORS = {
    "sync": "#1f77b4", "gba": "#2ca02c", "async": "#ff7f0e", "ssp": "#9467bd", "backup": "#8c564b"
}  # fmt: skip
# Beside these, tables and processes are added up: a chart of 200 lines shows nothing.
MOST_LINES = 9
MOST_WORKERS = 32
MOST_WINDOWS = 500
# Longer lines are drawn without a mark at every point.
MOST_POINTS = 60
MIB = 1 << 20
# The Gantt chart first shows about so many batches of a worker.
FIRST_BATCHES = 25

Series = dict[str, list[tuple[float, float | None]]]


def all_charts(run: RunData) -> list[tuple[str, str, list[figure]]]:
    """Return title, one line of explanation, and figures of every chart; without data: no figure.

    Charts of the whole run share their range of time: what is zoomed in one is zoomed in all.
    """
    last = run.intervals[-1]["time"] - run.began if run.intervals else 1.0
    shared = Range1d(0, max(last, 1e-3) * 1.01)
    charts: list[tuple[str, str, Callable[[RunData, Range1d], list[figure]]]] = [
        ("Throughput", "Samples applied per second; below, the mode.", _throughput),
        ("Training loss", "Mean over the samples of each interval.", _loss),
        ("AUC", "Of each evaluation.", _auc),
        (
            "AUC before training, by window",
            "Of the samples that arrived in each window of a stream, and by segment.",
            _windows,
        ),
        (
            "Normalised entropy, by window",
            "Log loss over that of always predicting the window's label rate.",
            _entropy,
        ),
        (
            "Label rate, by window",
            "The share of positives, and the mean of what was predicted before it was trained.",
            _label_rate,
        ),
        (
            "New keys per sample",
            "By table, of each interval: keys that no server knew. Where it rises the stream"
            " drifts.",
            _new_keys,
        ),
        ("Batches lost and given out again", "Sums from the start.", _lost_batches),
        (
            "Batches by worker",
            "Who computed which batch when; batches of one step have one colour, gaps are pulling,"
            " pushing and waiting. Drag the box in the lower chart, the mean time of a batch, to"
            " choose what is shown.",
            _gantt,
        ),
        ("Data staleness", "Share of contributions by steps between token and use.", _stale_data),
        (
            "Parameter staleness",
            "Share of contributions by steps between pull and use.",
            _stale_parameter,
        ),
        ("Share of samples by worker", "Of the samples of each interval.", _shares),
        ("Workers", "Those that are wanted, and those that are at work.", _fleet),
        ("Shard lag", "Steps that are ordered and not yet applied by a shard.", _lag),
        ("Rows by table", "Over all shards; the largest tables.", _rows),
        ("Bytes by table", "Over all shards; the largest tables.", _bytes),
        ("Memory", "The most that each process had resident.", _memory),
        ("Bytes on the wire", "Of the data plane, by server.", _wire),
        ("Learning rates", "As of the schedule clock.", _rates),
    ]
    return [(title, about, draw(run, shared)) for title, about, draw in charts]


# Drawing ------------------------------------------------------------------------------------------


def _figure(x_range: Range1d, *, height: int = 240, **options: Any) -> figure:
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        x_range=x_range,
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
        toolbar_location="above",
        min_border_left=70,
        min_border_right=20,
        x_axis_label="seconds",
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.xaxis.axis_label_text_font_style = "normal"
    return plot


def _show_legend(plot: figure, place: str = "right") -> None:
    plot.add_layout(plot.legend[0], place)
    plot.legend.click_policy = "hide"
    plot.legend.label_text_font_size = "11px"
    plot.legend.border_line_color = None
    plot.legend.spacing = 0 if place == "right" else 12


def _lines(
    series: Series,
    x_range: Range1d,
    *,
    number: str,
    unit: str | None = None,
    from_zero: bool = False,
) -> list[figure]:
    """A line for each name; empty where nothing was recorded."""
    series = {n: [p for p in points if p[1] is not None] for n, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return []
    plot = _figure(x_range, y_axis_label=unit)
    plot.yaxis.axis_label_text_font_style = "normal"
    plot.y_range.only_visible = True
    if from_zero:
        plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format=number)
    for i, (name, values) in enumerate(series.items()):
        source = ColumnDataSource(
            {"x": [x for x, _ in values], "y": [y for _, y in values], "name": [name] * len(values)}
        )
        color = COLORS[i % len(COLORS)]
        label = {"legend_label": name} if len(series) > 1 else {}
        plot.line("x", "y", source=source, line_width=2, color=color, **label)
        if len(values) <= MOST_POINTS:
            plot.scatter("x", "y", source=source, size=5, color=color, **label)
    plot.add_tools(
        HoverTool(tooltips=[("", "@name"), ("at", "@x{0.0} s"), ("", f"@y{{{number}}}")])
    )
    if len(series) > 1:
        _show_legend(plot)
    return [plot]


def _height(series: Series) -> int:
    """What a flat chart needs for its legend."""
    return 90 + 20 * max(3, len(series))


def _series(run: RunData, figures: Callable[[Line], dict[str, float | None]]) -> Series:
    """Gather the named figures of every interval."""
    series: Series = {}
    for line in run.intervals:
        for name, value in figures(line).items():
            series.setdefault(name, []).append((line["time"] - run.began, value))
    return series


def _by_number(series: Series) -> Series:
    """Order names that end in a number by it."""
    return dict(sorted(series.items(), key=lambda item: (len(item[0]), item[0])))


def _highest(series: Series) -> Series:
    """Keep the series with the highest means."""

    def mean(name: str) -> float:
        values = [y for _, y in series[name] if y is not None]
        return sum(values) / len(values) if values else 0.0

    return {name: series[name] for name in sorted(series, key=mean)[-MOST_LINES:]}


def _first(series: Series) -> Series:
    """Keep as many as a chart may have."""
    return dict(list(series.items())[:MOST_LINES])


def _largest(series: Series) -> Series:
    """Keep the series that end highest and add up the others."""
    names = sorted(series, key=lambda name: -(series[name][-1][1] or 0))
    kept = {name: series[name] for name in names[:MOST_LINES]}
    rest = names[MOST_LINES:]
    if rest:
        sums: dict[float, float] = {}
        for name in rest:
            for x, y in series[name]:
                sums[x] = sums.get(x, 0.0) + (y or 0.0)
        kept[f"{len(rest)} others"] = list(sums.items())
    return kept


def _edges(run: RunData) -> Iterable[tuple[Line, float, float]]:
    """Every interval with its begin and end."""
    begin = 0.0
    for line in run.intervals:
        end = line["time"] - run.began
        yield line, begin, end
        begin = end


# Charts -------------------------------------------------------------------------------------------


def _throughput(run: RunData, x_range: Range1d) -> list[figure]:
    rates = _series(run, lambda r: {"": r.get("samples_per_second")})
    plots = _lines(rates, x_range, number="0,0", from_zero=True)
    return [*plots, _mode_timeline(run, x_range)] if plots else []


def _mode_timeline(run: RunData, x_range: Range1d) -> figure:
    spans: list[tuple[str, float, float]] = []
    for line, begin, end in _edges(run):
        mode = line.get("mode", "unknown")
        if spans and spans[-1][0] == mode:
            begin = spans.pop()[1]
        spans.append((mode, begin, end))
    plot = _figure(x_range, height=80, y_range=Range1d(0, 1))
    for mode in dict.fromkeys(mode for mode, _, _ in spans):
        plot.quad(
            left=[begin for name, begin, _ in spans if name == mode],
            right=[end for name, _, end in spans if name == mode],
            bottom=0,
            top=1,
            color=MODE_COLORS.get(mode, "#7f7f7f"),
            legend_label=mode,
        )
    plot.yaxis.visible = plot.xaxis.visible = plot.grid.visible = False
    _show_legend(plot, "below")
    plot.legend.orientation = "horizontal"
    return plot


def _loss(run: RunData, x_range: Range1d) -> list[figure]:
    return _lines(_series(run, lambda r: {"": r.get("train_loss")}), x_range, number="0.0000")


def _auc(run: RunData, x_range: Range1d) -> list[figure]:
    evaluated: dict[object, Line] = {}
    lines = (each for line in run.intervals for each in line.get("evaluations", [line]))
    for line in lines:
        if line.get("eval_auc") is not None:
            # The first line that shows an evaluation is the one nearest to its end.
            evaluated.setdefault(line.get("eval_step", line["eval_auc"]), line)
    series: Series = {}
    for line in evaluated.values():
        at = line["time"] - run.began
        tasks = {f"AUC of {n}": each.get("auc") for n, each in line.get("eval_tasks", {}).items()}
        for name, auc in (tasks or {"": line["eval_auc"]}).items():
            series.setdefault(name, []).append((at, auc))
    return _lines(_first(series), x_range, number="0.0000")


def _windows(run: RunData, x_range: Range1d) -> list[figure]:
    """A line for all samples, of each task, and one for each of the largest segments."""
    whole: Series = {}
    series: Series = {}
    samples: dict[str, int] = {}
    for at, window in _told_windows(run):
        tasks = window.get("tasks", [])
        for task in tasks or [{"name": "all", **window}]:
            whole.setdefault(task["name"], []).append((at, task["auc"]))
            for segment in task.get("segments", []):
                value = "others" if segment["value"] is None else f"= {segment['value']}"
                name = f"{task['name']}, {value}" if tasks else value
                samples[name] = samples.get(name, 0) + segment["samples"]
                series.setdefault(name, []).append((at, segment["auc"]))
    largest = sorted(samples, key=lambda name: -samples[name])
    shown = {**whole, **{name: series[name] for name in largest}}
    return _lines(_first(shown), x_range, number="0.0000")


def _told_windows(run: RunData) -> list[tuple[float, Line]]:
    """Return windows with the time at which each ended; of very many some, evenly."""
    told: dict[float, Line] = {}
    for line in run.intervals:
        # Of a window that was trained again the last line holds.
        told.update((window["begins"], window) for window in line.get("windows", []))
    windows = [told[begins] for begins in sorted(told)]
    windows = windows[:: max(1, -(-len(windows) // MOST_WINDOWS))]
    return [(max(0.0, w["begins"] + w["seconds"] - run.began), w) for w in windows]


def _entropy(run: RunData, x_range: Range1d) -> list[figure]:
    points = [(at, window.get("normalized_entropy")) for at, window in _told_windows(run)]
    return _lines({"": points}, x_range, number="0.0000")


def _label_rate(run: RunData, x_range: Range1d) -> list[figure]:
    series: Series = {"positive": [], "predicted": []}
    for at, window in _told_windows(run):
        rate, calibration = window.get("label_rate"), window.get("calibration")
        series["positive"].append((at, rate))
        if rate is not None and calibration is not None:
            series["predicted"].append((at, rate * calibration))
    return _lines(series, x_range, number="0.0000", from_zero=True)


def _new_keys(run: RunData, x_range: Range1d) -> list[figure]:
    if not any(line.get("stream") for line in run.intervals):
        return []
    series = _series(run, lambda line: line.get("new_keys_per_sample", {}))
    return _lines(_largest(series), x_range, number="0.0000", from_zero=True)


def _gantt(run: RunData, x_range: Range1d) -> list[figure]:
    if not run.batches:
        return []
    workers = _slowest(run.batches)
    batches = [line for line in run.batches if line["worker"] in workers]
    starts = [line["start"] - run.began for line in batches]
    first = batches[: FIRST_BATCHES * len(workers)][-1]
    shown = Range1d(starts[0], first["start"] + first["seconds"] - run.began)
    rows = [str(worker) for worker in reversed(workers)]
    plot = _figure(shown, height=110 + 26 * len(workers), y_range=rows)
    source = ColumnDataSource(
        {
            "worker": [str(line["worker"]) for line in batches],
            "left": starts,
            "right": [s + line["seconds"] for s, line in zip(starts, batches, strict=True)],
            "color": [COLORS[line["step"] % len(COLORS)] for line in batches],
            **{
                key: [line[key] for line in batches]
                for key in ("batch", "attempt", "step", "samples", "seconds")
            },
        }
    )
    plot.hbar(
        "worker", left="left", right="right", height=0.8, color="color", line_color="white",
        source=source,
    )  # fmt: skip
    names = ("worker", "batch", "attempt", "step", "samples")
    tips = [(name, f"@{name}") for name in names]
    plot.add_tools(HoverTool(tooltips=[*tips, ("seconds", "@seconds{0.0000}")]))
    plot.yaxis.axis_label = "worker"
    seconds = _by_number(_highest(_series(run, _batch_seconds)))
    times = _lines(seconds, x_range, number="0.[0000]", unit="seconds", from_zero=True)
    for overview in times:
        overview.height = _height(seconds)
        overview.add_tools(RangeTool(x_range=shown))
    return [plot, *times]


def _slowest(batches: list[Line]) -> list[int]:
    """Return the numbers of the workers to show, in order."""
    sums: dict[int, tuple[float, int]] = {}
    for line in batches:
        seconds, count = sums.get(line["worker"], (0.0, 0))
        sums[line["worker"]] = seconds + line["seconds"], count + 1
    by_mean = sorted(sums, key=lambda worker: -sums[worker][0] / sums[worker][1])
    return sorted(by_mean[:MOST_WORKERS])


def _batch_seconds(line: Line) -> dict[str, float | None]:
    return {f"worker {n}": w["batch_seconds"] for n, w in line.get("workers", {}).items()}


def _shares(run: RunData, x_range: Range1d) -> list[figure]:
    shares = _series(
        run, lambda r: {f"worker {n}": w["share"] for n, w in r.get("workers", {}).items()}
    )
    return _lines(_by_number(_largest(shares)), x_range, number="0%", from_zero=True)


def _stale_data(run: RunData, x_range: Range1d) -> list[figure]:
    return _histogram_over_time(run, x_range, "data")


def _stale_parameter(run: RunData, x_range: Range1d) -> list[figure]:
    return _histogram_over_time(run, x_range, "parameter")


def _bin(steps: int) -> tuple[int, str]:
    """The bin of a number of steps, as its lowest number and its name: doubling widths."""
    if steps < 4:
        return steps, str(steps)
    low = 1 << (steps.bit_length() - 1)
    return low, f"{low} to {2 * low - 1}"


def _histogram_over_time(run: RunData, x_range: Range1d, kind: str) -> list[figure]:
    """Every interval as a stack of shares, the freshest at the bottom."""
    spans, found = [], set()
    for line, begin, end in _edges(run):
        binned: dict[tuple[int, str], int] = {}
        for steps, count in line.get("staleness_of_interval", {}).get(kind, {}).items():
            key = _bin(int(steps))
            binned[key] = binned.get(key, 0) + count
        if binned:
            spans.append((begin, end, binned))
            found |= set(binned)
    if not spans:
        return []
    plot = _figure(x_range, y_range=Range1d(0, 1))
    plot.yaxis.formatter = NumeralTickFormatter(format="0%")
    palette = Viridis[11]
    base = [0.0] * len(spans)
    bins = sorted(found)
    for i, key in enumerate(bins):
        counts = [binned.get(key, 0) for _, _, binned in spans]
        shares = [n / sum(s[2].values()) for n, s in zip(counts, spans, strict=True)]
        top = [b + share for b, share in zip(base, shares, strict=True)]
        source = ColumnDataSource(
            {
                "left": [s[0] for s in spans], "right": [s[1] for s in spans], "bottom": base,
                "top": top, "count": counts, "share": shares, "steps": [key[1]] * len(spans),
            }
        )  # fmt: skip
        color = palette[10 - (10 * i) // max(1, len(bins) - 1)]
        plot.quad(
            left="left", right="right", bottom="bottom", top="top", source=source, color=color,
            line_color="white", line_width=0.5, legend_label=key[1],
        )  # fmt: skip
        base = top
    plot.legend.title = "steps"
    plot.add_tools(HoverTool(tooltips=[("steps", "@steps"), ("", "@count (@share{0.0%})")]))
    _show_legend(plot)
    return [plot]


def _lost_batches(run: RunData, x_range: Range1d) -> list[figure]:
    names = ("dropped", "skipped", "reissued", "superseded")
    figures = _series(run, lambda r: {n: r["batches"][n] for n in names if "batches" in r})
    return _lines(figures, x_range, number="0,0.[0]", from_zero=True)


def _rows(run: RunData, x_range: Range1d) -> list[figure]:
    return _lines(_largest(_series(run, lambda r: r.get("rows", {}))), x_range, number="0.[0]a")


def _bytes(run: RunData, x_range: Range1d) -> list[figure]:
    series = _series(run, lambda r: {n: b / MIB for n, b in r.get("table_bytes", {}).items()})
    return _lines(_largest(series), x_range, number="0,0.[0]", unit="MiB", from_zero=True)


def _memory(run: RunData, x_range: Range1d) -> list[figure]:
    def figures(line: Line) -> dict[str, float | None]:
        roles = line.get("peak_rss_bytes", {})
        return {
            f"{role} {i}": size / MIB
            for role, sizes in roles.items()
            for i, size in indexed(line, role, sizes)
        }

    series = _largest(_series(run, figures))
    return _lines(series, x_range, number="0,0", unit="MiB", from_zero=True)


def _fleet(run: RunData, x_range: Range1d) -> list[figure]:
    def figures(line: Line) -> dict[str, float | None]:
        together = line.get("all_workers")
        if not isinstance(together, dict):
            return {}
        count, lost = together.get("count"), together.get("lost")
        up = count - lost if isinstance(count, int) and isinstance(lost, int) else None
        return {"wanted": line.get("workers_wanted"), "at work": up}

    return _lines(_series(run, figures), x_range, number="0,0", from_zero=True)


def _lag(run: RunData, x_range: Range1d) -> list[figure]:
    lags = _series(
        run,
        lambda r: {f"server {i}": lag for i, lag in indexed(r, "server", r.get("shard_lag", []))},
    )
    return _lines(lags, x_range, number="0,0.[0]", unit="steps", from_zero=True)


def _wire(run: RunData, x_range: Range1d) -> list[figure]:
    series: Series = {}
    before: dict[str, int] = {}
    for line, begin, end in _edges(run):
        wire = line.get("wire_bytes", {})
        for way in ("sent", "received"):
            for i, total in indexed(line, "server", wire.get(f"{way}_by_servers", [])):
                name = f"server {i} {way}"
                new = (total - before.get(name, 0)) / MIB
                rate = new / (end - begin) if end > begin else None
                before[name] = total
                series.setdefault(name, []).append((end, rate))
    return _lines(_largest(series), x_range, number="0,0.[0]", unit="MiB/s", from_zero=True)


def _rates(run: RunData, x_range: Range1d) -> list[figure]:
    return _lines(_series(run, lambda r: r.get("learning_rate", {})), x_range, number="0.[000000]")
