"""`synchromesh inspect`: what tables hold, for people and for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import click
import numpy as np
import pyarrow as pa
from rich.console import Console, JustifyMethod
from rich.filesize import decimal
from rich.table import Table

from embedding import TableEntries, TableSpec, rule_for
from embedding.spec.json_form import to_json
from embedding.table.inspection import BIN_STARTS, RankBy, norms
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.summary import KeyState, TableOverview, TableSummary, overview_of, summarize
from runtime.places import Place
from scheduler import RunDirectoryError
from scheduler.job.errors import nearest
from scheduler.run.directory import latest_checkpoint
from synchromesh.commands.answers import (
    FAILURES,
    answering,
    json_option,
    people_console,
    print_json,
)
from synchromesh.tiers_of_run import Tiers, show_tiers, show_tiers_of_table, tiers_of_run

TOP_ROWS = 10
BAR_COLUMNS = 40
EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
ALL_KEYS, NEVER = "all keys", "never"


class UnknownError(ValueError):
    """A table that the checkpoint does not have, or what it does not know of one."""


@click.command(epilog="Example: synchromesh inspect runs/dlrm C3 --top 5 --key 7 --key 9")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("table", required=False)
@click.option(
    "--top", type=click.IntRange(min=0), help=f"How many of the highest rows (default: {TOP_ROWS})."
)
@click.option(
    "--by",
    type=click.Choice(get_args(RankBy)),
    help="What rows are highest in (default: frequency, if known).",
)
@click.option(
    "--key",
    "keys",
    type=click.IntRange(-(2**63), 2**63 - 1),
    multiple=True,
    metavar="KEY",
    help="Look up an int64 key; may be given several times.",
)
@json_option
def command(
    checkpoint: str,
    table: str | None,
    top: int | None,
    by: RankBy | None,
    keys: tuple[int, ...],
    as_json: bool,
) -> None:
    """Show the tables of a checkpoint, of a run its newest one, or what one TABLE holds.

    Without TABLE a line for each table, from the manifest alone; with one what it holds, from its
    files, read part by part: ranges of frequency, version and vector norm, how frequencies are
    distributed, the highest rows, and keys that are looked up.
    """
    for option, given in {"top": top is not None, "by": by is not None, "key": bool(keys)}.items():
        if table is None and given:
            raise click.UsageError(f"--{option} needs TABLE")
    with answering(RunDirectoryError, UnknownError, failures=()):
        path, reader, tables = _opened(checkpoint, table, by)
    with answering(failures=(*FAILURES, pa.ArrowException), failed="failed: "):
        tiers = tiers_of_run(checkpoint)
        if table is None:
            _show_all(path, reader, tables, tiers, as_json=as_json)
        else:
            _show_one(path, reader, tables[0], top, by, keys, tiers, as_json=as_json)


# For programs -------------------------------------------------------------------------------------


def overview_json(overview: TableOverview) -> dict[str, Any]:
    numbers = {
        name: getattr(overview, name)
        for name in ("rows", "unadmitted", "file_bytes", "memory_bytes")
    }
    return {**to_json(overview.spec), **numbers}


def summary_json(summary: TableSummary, by: RankBy) -> dict[str, Any]:
    spec = summary.overview.spec
    bins = [
        {"from": low, "to": high, "rows": rows, "unadmitted": unadmitted}
        for (low, high), rows, unadmitted in zip(
            bins_of(),
            summary.row_histogram.tolist(),
            summary.unadmitted_histogram.tolist(),
            strict=True,
        )
        if rows or unadmitted
    ]
    names = ("ranges", "sampled_rows", "nonfinite_rows")
    return {
        "table": overview_json(summary.overview),
        **{name: getattr(summary, name) for name in names},
        "frequencies": bins,
        "top": {"by": by, "rows": rows_json(summary.top, spec)},
        "keys": [key_json(state, spec) for state in summary.keys],
    }


def rows_json(entries: TableEntries, spec: TableSpec) -> list[dict[str, Any]]:
    rule = rule_for(spec.optimizer, sparse=True)
    columns: dict[str, list[Any]] = {
        "key": entries.keys.tolist(),
        **usage_columns(entries, spec),
        "norm": norms(entries.vectors).tolist(),
        "vector": entries.vectors.tolist(),
    }
    for slot, part in zip(rule.slots, rule.columns(spec.dim), strict=True):
        columns[f"slot_{slot.name}"] = entries.slots[:, part].tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def usage_columns(entries: TableEntries, spec: TableSpec) -> dict[str, list[int]]:
    """Return frequency and version of rows, where the table tracks them."""
    if not spec.track_usage:
        return {}
    return {"frequency": entries.frequency.tolist(), "version": entries.version.tolist()}


def key_json(state: KeyState, spec: TableSpec) -> dict[str, Any]:
    if state.row is not None:
        return {"state": state.state, **rows_json(state.row, spec)[0]}
    known = {"frequency": state.frequency, "version": state.version}
    return {"state": state.state, "key": state.key, **known}


def bins_of() -> list[tuple[int, int]]:
    """Return the first and the last frequency of each bin of a histogram."""
    starts = BIN_STARTS.tolist()
    return list(zip(starts, [start - 1 for start in [*starts[1:], 2**63]], strict=True))


# For people ---------------------------------------------------------------------------------------


def show_overviews(console: Console, overviews: list[TableOverview]) -> None:
    columns: dict[str, JustifyMethod] = {
        "table": "left", "rows": "right", "unadmitted": "right", "files": "right", "dim": "right",
        "optimizer": "left", "admission": "left", "eviction": "left",
    }  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")
    for overview in overviews:
        spec = overview.spec
        table.add_row(
            spec.name,
            f"{overview.rows:,}",
            unadmitted_text(overview),
            decimal(overview.file_bytes),
            str(spec.dim),
            spec.optimizer.type,
            in_short(spec.admission) or ALL_KEYS,
            in_short(spec.eviction) or NEVER,
        )
    console.print(table)
    rows = sum(overview.rows for overview in overviews)
    memory = sum(overview.memory_bytes for overview in overviews)
    files = sum(overview.file_bytes for overview in overviews)
    console.print(
        f"\n{len(overviews)} tables: {rows:,} rows, {decimal(files)} in files, {decimal(memory)}"
        " once loaded"
    )


def show_summary(console: Console, summary: TableSummary, by: RankBy) -> None:
    show_spec(console, summary.overview)
    if any(summary.ranges.values()):
        show_ranges(console, summary)
    if summary.nonfinite_rows:
        console.print(
            f"{summary.nonfinite_rows:,} rows hold NaN or infinity; --by norm shows them first",
            style="bold red",
        )
    rows, unadmitted = summary.row_histogram, summary.unadmitted_histogram
    show_chart(console, "Rows by how often their key was seen", rows)
    show_chart(console, "Unadmitted keys by how often they were seen", unadmitted)
    if summary.top.keys.size:
        console.print(f"\nRows that are highest by {by}", style="bold")
        show_rows(console, summary.top, summary.overview.spec)
    for state in summary.keys:
        show_key(console, state, summary.overview.spec)


def show_spec(console: Console, overview: TableOverview) -> None:
    spec = overview.spec
    facts = {
        "rows": f"{overview.rows:,}",
        "unadmitted keys": unadmitted_text(overview, why=True),
        "bytes in files": decimal(overview.file_bytes),
        "bytes once loaded": f"{decimal(overview.memory_bytes)} in one process",
        "dim": str(spec.dim),
        "value_dtype": spec.value_dtype,
        "optimizer": in_short(spec.optimizer, defaults=True),
        "initializer": in_short(spec.initializer, defaults=True),
        "admission": "all keys"
        if spec.admission is None
        else in_short(spec.admission, defaults=True),
        "eviction": in_short(spec.eviction, defaults=True) or NEVER,
        "usage": "tracked" if spec.track_usage else "not tracked (track_usage)",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(name, value)
    console.print(grid)


def show_ranges(console: Console, summary: TableSummary) -> None:
    sampled = summary.sampled_rows
    of = f", percentiles of {sampled:,} rows" if sampled < summary.overview.rows else ""
    console.print(f"\nRanges over the rows{of}", style="bold")
    table = Table(box=None, pad_edge=False)
    table.add_column()
    names = {"p50": "median", "p10": "10 %", "p90": "90 %", "p99": "99 %"}
    for name in next(filter(None, summary.ranges.values())):
        table.add_column(names.get(name, name), justify="right")
    for name, values in summary.ranges.items():
        label = "vector norm" if name == "norm" else name
        table.add_row(label, *(number_text(value, 10**7) for value in values.values()))
    console.print(table)


def show_chart(console: Console, title: str, counts: np.ndarray) -> None:
    used = np.flatnonzero(counts)
    if not used.size:
        return
    console.print(f"\n{title}", style="bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("right", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    total, largest = int(counts.sum()), int(counts.max())
    labels = [bin_text(low, high) for low, high in bins_of()[used[0] : used[-1] + 1]]
    taken = max(map(len, labels)) + len(f"{largest:,}") + len("< 0.1 %") + 3 * 2
    width = max(min(BAR_COLUMNS, console.width - taken), 1)
    ascii_only = not console.encoding.startswith("utf")
    for label, count in zip(labels, counts[used[0] : used[-1] + 1].tolist(), strict=True):
        share = f"{100 * count / total:.1f} %" if 1000 * count >= total else "< 0.1 %"
        bar = bar_text(count / largest, width, ascii_only=ascii_only)
        table.add_row(label, f"{count:,}", share if count else "", bar)
    console.print(table)


def bar_text(share: float, width: int, *, ascii_only: bool) -> str:
    """Return a bar of some width; of the smallest share that is not 0 something is seen."""
    if ascii_only:
        return "#" * max(round(width * share), share > 0)
    full, eighths = divmod(max(round(8 * width * share), share > 0), 8)
    return "█" * full + EIGHTHS[eighths]


def show_rows(console: Console, entries: TableEntries, spec: TableSpec) -> None:
    columns = {
        "key": [str(key) for key in entries.keys.tolist()],
        **{
            name: [number_text(number, 10**12) for number in numbers]
            for name, numbers in usage_columns(entries, spec).items()
        },
        "norm": [f"{norm:.4g}" for norm in norms(entries.vectors).tolist()],
    }
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("vector", no_wrap=True)
    taken = sum(max(map(len, [name, *cells])) + 2 for name, cells in columns.items())
    for row, vector in zip(zip(*columns.values(), strict=True), entries.vectors, strict=True):
        table.add_row(*row, values_text(vector, console.width - taken))
    console.print(table)


def show_key(console: Console, state: KeyState, spec: TableSpec) -> None:
    console.print(f"\nKey {state.key}: {key_text(state)}", style="bold")
    if state.row is None:
        return
    rule = rule_for(spec.optimizer, sparse=True)
    values = {"vector": state.row.vectors[0]}
    for slot, part in zip(rule.slots, rule.columns(spec.dim), strict=True):
        values[f"slot {slot.name}"] = state.row.slots[0, part]
    grid = Table.grid(padding=(0, 2))
    for name, numbers in values.items():
        grid.add_row(name, values_text(numbers, console.width - max(map(len, values)) - 2))
    console.print(grid)


def key_text(state: KeyState) -> str:
    if state.state == "absent":
        return "absent, it has neither row nor counter"
    if state.frequency is None:
        assert state.row is not None, "counters have a frequency"
        return f"a row, norm {norms(state.row.vectors)[0]:.4g}"
    times = "once" if state.frequency == 1 else f"{state.frequency:,} times"
    if state.row is not None:
        norm = norms(state.row.vectors)[0]
        return f"a row, seen {times}, last changed by step {state.version:,}, norm {norm:.4g}"
    if state.version is None:
        return f"no row; by the Bloom filter seen {times} at most"
    return f"no row but a counter, seen {times}, last at step {state.version:,}"


def in_short(options: Any, *, defaults: bool = False) -> str:
    """Return a spec's type and those of its options that differ from the default; "" of None.

    Args:
        defaults: add the options that are as by default, unless they are off.
    """
    if options is None:
        return ""
    words = [options.type] if hasattr(options, "type") else []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name != "type" and (value != field.default or (defaults and value)):
            words.append(f"{field.name} {value}")
    return ", ".join(words)


def unadmitted_text(overview: TableOverview, *, why: bool = False) -> str:
    if overview.unadmitted is None:
        return "unknown: a Bloom filter counts without keeping keys" if why else "unknown"
    return f"{overview.unadmitted:,}"


def bin_text(low: int, high: int) -> str:
    if low == high:
        return str(low)
    if low >= 1 << 16:
        return f"2^{low.bit_length() - 1} to 2^{high.bit_length()}-1"
    return f"{low:,} to {high:,}"


def number_text(value: float, exact_below: int) -> str:
    """Return a whole number with all of its digits where there is room, others with four."""
    whole = isinstance(value, int) and abs(value) < exact_below
    return f"{value:,}" if whole else f"{value:.4g}"


def values_text(values: np.ndarray, width: int) -> str:
    """Return the first values, as many as fit into so many columns."""
    words = [f"{value:.3g}" for value in values[:width].tolist()]
    text = " ".join(words)
    while words and (len(text) > width or len(words) < values.size):
        words.pop()
        text = " ".join([*words, "..."])
        if len(text) <= width:
            break
    return text


# The command --------------------------------------------------------------------------------------


def _opened(
    checkpoint: str, table: str | None, by: RankBy | None
) -> tuple[Place, CheckpointReader, list[TableSpec]]:
    """Return the checkpoint and the tables that are wanted of it."""
    path = latest_checkpoint(checkpoint)
    reader = CheckpointReader(path)
    tables = {table.name: table for table in reader.store.tables}
    if table is None:
        return path, reader, list(tables.values())
    if table not in tables:
        hint = nearest(table, list(tables))
        raise UnknownError(f"the checkpoint has no table {table!r}{hint}")
    spec = tables[table]
    if by in ("frequency", "version") and not spec.track_usage:
        raise UnknownError(
            f"table {spec.name} was trained without track_usage, so its rows have no {by};"
            " take --by norm, or train with embedding.track_usage=true"
        )
    return path, reader, [spec]


def _show_all(
    path: Place,
    reader: CheckpointReader,
    tables: list[TableSpec],
    tiers: Tiers,
    *,
    as_json: bool,
) -> None:
    step = reader.manifest.step
    overviews = [overview_of(reader, spec) for spec in tables]
    if as_json:
        found = [overview_json(one) for one in overviews]
        for table in found:
            if table["name"] in tiers:
                table["tiers"] = tiers[table["name"]]
        print_json({"checkpoint": str(path), "step": step, "tables": found})
        return
    console = people_console()
    console.print(f"Checkpoint {path}, step {step:,}\n", style="bold", soft_wrap=True)
    show_overviews(console, overviews)
    show_tiers(console, tiers, [spec.name for spec in tables])


def _show_one(
    path: Place,
    reader: CheckpointReader,
    spec: TableSpec,
    top: int | None,
    wanted_by: RankBy | None,
    keys: Sequence[int],
    tiers: Tiers,
    *,
    as_json: bool,
) -> None:
    step = reader.manifest.step
    by: RankBy = wanted_by or ("frequency" if spec.track_usage else "norm")
    summary = summarize(reader, spec, top=TOP_ROWS if top is None else top, by=by, keys=keys)
    if as_json:
        found = summary_json(summary, by)
        if spec.name in tiers:
            found["table"]["tiers"] = tiers[spec.name]
        print_json({"checkpoint": str(path), "step": step, **found})
        return
    console = people_console()
    title = f"Table {spec.name} of {path}, step {step:,}\n"
    console.print(title, style="bold", soft_wrap=True)
    show_summary(console, summary, by)
    if spec.name in tiers:
        show_tiers_of_table(console, tiers[spec.name])
