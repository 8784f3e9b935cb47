"""The page of a run: summary, charts, tables and job file in one file that needs no network."""

import html
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources

from scheduler.views.report.charts import all_charts
from scheduler.views.report.reading import RunData
from worker.metrics import auc_text

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "Liberation Sans", sans-serif; color: #1c2430;
  background: #f4f5f7; margin: 0; }
main { max-width: 1400px; margin: 0 auto; padding: 16px; }
h1 { font-size: 24px; margin: 8px 0 4px; } h2 { font-size: 16px; margin: 0 0 2px; }
.state { padding: 8px 12px; border-radius: 6px; background: #fff3cd; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.finished { background: #d7f0dd; } .failed { background: #f8d7da; }
.about { color: #5a6472; margin: 0 0 6px; font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px;
  margin-top: 12px; }
.card { background: #fff; border: 1px solid #dde1e6; border-radius: 6px; padding: 12px;
  margin-top: 12px; min-width: 0; }
.cards .card { margin: 0; } .wide { grid-column: 1 / -1; }
.none { color: #8a94a3; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 8px;
  margin-top: 12px; }
.figure { background: #fff; border: 1px solid #dde1e6; border-radius: 6px; padding: 8px 10px; }
.figure b { display: block; font-size: 18px; overflow-wrap: anywhere; }
.figure span { color: #5a6472; font-size: 12px; }
table { border-collapse: collapse; } th, td { text-align: right; padding: 2px 12px 2px 0; }
th { color: #5a6472; font-weight: normal; } th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; font-size: 13px; } summary { cursor: pointer; font-weight: bold; }
.scroll { overflow-x: auto; }
@media (max-width: 900px) { .cards { grid-template-columns: minmax(0, 1fr); } }
"""


def page_of(run: RunData) -> str:
    """Return the whole page as HTML; scripts and styles are in it."""
    charts = all_charts(run)
    drawn = {f"{i}-{j}": plot for i, chart in enumerate(charts) for j, plot in enumerate(chart[2])}
    script, divs = components(drawn) if drawn else ("", {})
    cards = []
    for i, (title, about, plots) in enumerate(charts):
        inside = "".join(divs[f"{i}-{j}"] for j in range(len(plots)))
        cards.append(_card(title, about, inside, wide=len(plots) > 1 and i > 0))
    name = run.path.resolve().name
    library = Resources(mode="inline", components=["bokeh"], minified=True).render()
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(name)}</title>\n<style>{_STYLE}</style>",
            library if drawn else "",
            "</head>\n<body>\n<main>",
            f"<h1>{html.escape(name)}</h1>",
            _state(run),
            *(f'<p class="about">{html.escape(note)}</p>' for note in run.notes),
            _figures(summary(run)),
            f'<div class="cards">{"".join(cards)}</div>',
            _modes(run),
            _recoveries(run),
            _scalings(run),
            _server_moves(run),
            _rebalancings(run),
            _tables(run),
            _job(run),
            f"</main>\n{script}\n</body>\n</html>\n",
        ]
    )


def summary(run: RunData) -> list[tuple[str, str]]:
    """Return the figures that stand at the top, those of the result where there is one."""
    result = run.result or {}
    last = run.intervals[-1] if run.intervals else {}
    seconds = result.get("train_seconds", last.get("train_seconds"))
    samples = result.get("samples_trained", last.get("samples"))
    batches = result.get("ledger") or last.get("batches") or {}
    evaluation = result.get("eval") or {}
    skipped_files = result.get("skipped_files", {})
    losses = [line["train_loss"] for line in run.intervals if line.get("train_loss") is not None]
    stale = (result.get("staleness") or last.get("staleness") or {}).get("parameter", {})
    modes = list(dict.fromkeys(line["mode"] for line in run.intervals if "mode" in line))
    rows = sum(last.get("rows", {}).values())
    dense_non_finite = result.get("dense_non_finite", last.get("dense_non_finite"))
    found: list[tuple[str, Any]] = [
        ("mode", ", ".join(modes) or None),
        ("samples", _number(samples)),
        ("samples/s", _number(samples / seconds if samples and seconds else None)),
        ("training time", None if seconds is None else f"{seconds:,.1f} s"),
        ("global step", _number(result.get("global_step", last.get("global_step")))),
        ("AUC", _auc(evaluation, last)),
        ("logloss", _number(evaluation.get("logloss"), 4)),
        ("GAUC", _number(evaluation.get("gauc", last.get("eval_gauc")), 4)),
        *_of_tasks(evaluation.get("tasks", last.get("eval_tasks")) or {}),
        ("last training loss", _number(losses[-1] if losses else None, 4)),
        ("parameter staleness, mean", _number(stale.get("mean"), 2)),
        ("parameter staleness, p99", _number(stale.get("p99"))),
        ("samples dropped", _number(result.get("samples_dropped", last.get("samples_dropped")))),
        ("samples skipped", _skipped(result, last)),
        ("files left out", _number(sum(map(len, skipped_files.values())) or None)),
        ("updates of rows left out, not finite", _number(_non_finite(result, last) or None)),
        ("updates of dense blocks left out, not finite", _number(dense_non_finite or None)),
        ("batches given out again", _number(batches.get("reissued"))),
        ("workers replaced", _number(result.get("worker_restarts"))),
        ("servers, coordinators or drivers lost, times", _number(_losses(run) or None)),
        ("moved before a node was taken away, times", _number(_moves(run) or None)),
        ("rows", _number(rows if last else None)),
        ("model digest", (result.get("model_digest") or "")[:12] or None),
    ]
    return [(name, value) for name, value in found if value is not None]


def _skipped(result: dict[str, Any], last: dict[str, Any]) -> str | None:
    """Return how many samples were skipped, and why."""
    count = _number(result.get("samples_skipped", last.get("samples_skipped")))
    reasons = result.get("skipped_by_reason", last.get("skipped_by_reason")) or {}
    named = ", ".join(f"{_number(samples)} {reason}" for reason, samples in reasons.items())
    return f"{count} ({named})" if named else count


def _non_finite(result: dict[str, Any], last: dict[str, Any]) -> int:
    """Return how many gradients of rows had sums that are not finite, over all tables."""
    if "tables" in result:
        return sum(table.get("non_finite", 0) for table in result["tables"].values())
    return sum(last.get("non_finite", {}).values())


def _auc(evaluation: dict[str, Any], last: dict[str, Any]) -> str | None:
    """Return the AUC of the result, else that of the last line, with its bound."""
    auc = evaluation.get("auc", last.get("eval_auc"))
    bound = evaluation.get("auc_error_bound", last.get("eval_auc_error_bound"))
    return None if auc is None else auc_text(auc, bound)


def _of_tasks(tasks: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return what is shown of each of several tasks."""
    return [
        (f"{score} of {name}", text)
        for name, its in tasks.items()
        for score, text in (
            ("AUC", None if its.get("auc") is None else auc_text(its["auc"], None)),
            ("logloss", _number(its.get("logloss"), 4)),
            ("samples", _number(its.get("samples"))),
            ("GAUC", _number(its.get("gauc"), 4)),
        )
    ]


def _number(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _state(run: RunData) -> str:
    return f'<p class="state {run.outcome}">{html.escape(run.state)}</p>'


def _figures(figures: list[tuple[str, str]]) -> str:
    boxes = (
        f'<div class="figure"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in figures
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def _card(title: str, about: str, inside: str, *, wide: bool) -> str:
    inside = inside or '<p class="none">Nothing of this was recorded.</p>'
    return (
        f'<section class="card{" wide" if wide else ""}"><h2>{html.escape(title)}</h2>'
        f'<p class="about">{html.escape(about)}</p>{inside}</section>'
    )


def _tables(run: RunData) -> str:
    """The tables of the result, or of the last interval where there is none."""
    tables: dict[str, dict[str, Any]] = (run.result or {}).get("tables", {})
    if not tables and run.intervals:
        last = run.intervals[-1]
        sizes = last.get("table_bytes", {})
        tables = {
            name: {"rows": rows, **({"bytes": sizes[name]} if name in sizes else {})}
            for name, rows in last.get("rows", {}).items()
        }
    if not tables:
        return ""
    columns = list(dict.fromkeys(key for table in tables.values() for key in table))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("table", *columns))
    rows = []
    for name, table in tables.items():
        cells = "".join(f"<td>{_cell(table.get(column))}</td>" for column in columns)
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    body = "".join(rows)
    return (
        '<section class="card"><h2>Tables</h2><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _modes(run: RunData) -> str:
    """The modes that a job was in, where it was in several."""
    history: list[dict[str, Any]] = (run.result or {}).get("mode_history", [])
    if len(history) < 2:
        return ""
    columns = {
        "mode": "mode", "from_step": "from step", "samples": "samples",
        "samples_per_second": "samples/s", "predicted_sync_samples_per_second": "predicted sync",
        "predicted_gba_samples_per_second": "predicted gba", "reissued_batches": "re-issued",
        "seconds_to_next_step": "s to next step", "reason": "why",
    }  # fmt: skip
    return _wide_table("Modes", columns, history)


def _moves(run: RunData) -> int:
    return sum(each.get("kind") == "move" for each in run.recoveries)


def _losses(run: RunData) -> int:
    return len(run.recoveries) - _moves(run)


def _recoveries(run: RunData) -> str:
    """What a job lost of servers and coordinators, and what it cost."""
    if not run.recoveries:
        return ""
    columns = {
        "cause": "what was lost, or moved", "from_step": "at step", "to_step": "went on at",
        "redone_steps": "steps redone", "redone_samples": "samples redone",
        "seconds": "s to next step", "promoted": "standbys took the place of servers",
    }  # fmt: skip
    if not any(each.get("promoted") for each in run.recoveries):
        del columns["promoted"]
    entries = [
        {**each, "promoted": ", ".join(map(str, each.get("promoted") or ()))}
        for each in run.recoveries
    ]
    return _wide_table("Losses and moves", columns, entries)


def _server_moves(run: RunData) -> str:
    """How many servers there were, what moved for that, and how long training paused."""
    if not run.server_moves:
        return ""
    columns = {
        "at": "at, s", "before": "from", "after": "to", "step": "at step",
        "buckets": "buckets moved, of 4096", "rows": "rows", "bytes": "bytes", "rounds": "cuts",
        "rows_in_pause": "rows in the pause", "seconds": "s in all", "pause_seconds": "s of pause",
        "parts": "of these",
    }  # fmt: skip
    moves = [
        {**each, "at": each.get("time", run.began) - run.began, "parts": _parts(each)}
        for each in run.server_moves
    ]
    return _wide_table("Servers", columns, moves)


def _rebalancings(run: RunData) -> str:
    """What was decided on which buckets are where, and what came of it."""
    if not run.rebalancings:
        return ""
    columns = {
        "at": "at, s", "skew": "busiest server over the mean", "predicted": "predicted",
        "realised": "realised", "buckets": "buckets moved", "hottest": "hottest bucket",
        "held_back": "held back, because",
    }  # fmt: skip
    decisions = [
        {**each, "at": each["time"] - run.began if each.get("time") else None}
        for each in run.rebalancings
    ]
    return _wide_table("Load of servers", columns, decisions)


def _parts(move: dict[str, Any]) -> str:
    """Say what a pause was spent on."""
    parts = move.get("pause_parts", {}).items()
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in parts)


def _scalings(run: RunData) -> str:
    """What was decided on the number of workers and servers, and what came of it."""
    if not run.scalings:
        return ""
    columns = {
        "at": "at, s", "role": "of", "before": "from", "after": "to", "rate": "samples/s before",
        "predicted": "predicted", "realised": "realised", "reason": "why",
        "held_back": "held back, because",
    }  # fmt: skip
    decisions = [
        {**each, **_shares(each), "at": each["time"] - run.began if each.get("time") else None}
        for each in run.scalings
    ]
    return _wide_table("Scaling", columns, decisions)


def _shares(scaling: dict[str, Any]) -> dict[str, str]:
    """Return what is shown of a decision on servers instead of samples per second."""
    if scaling.get("share") is None:
        return {}
    of = "of the time" if scaling.get("cause") == "load" else "of the memory"
    named = {name: scaling.get(name) for name in ("predicted", "realised")}
    return {name: f"{share:.0%} {of}" for name, share in named.items() if share is not None}


def _wide_table(title: str, columns: dict[str, str], entries: list[dict[str, Any]]) -> str:
    """Return a card with a table.

    Args:
        columns: the title of each key.
    """
    head = "".join(f"<th>{html.escape(text)}</th>" for text in columns.values())
    rows = []
    for entry in entries:
        rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in entry.items()}
        rows.append("".join(f"<td>{_cell(rounded.get(name))}</td>" for name in columns))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<section class="card wide"><h2>{html.escape(title)}</h2><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else html.escape(str(value or ""))


def _job(run: RunData) -> str:
    if run.job is None:
        return ""
    return (
        '<section class="card"><details><summary>Job file</summary>'
        f"<pre>{html.escape(run.job)}</pre></details></section>"
    )
