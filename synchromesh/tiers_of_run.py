"""Where the rows of a run's tables were when it last said so: memory, or disk."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from scheduler.run.control_file import last_metrics
from scheduler.run.directory import RESULT_FILE

_NEEDED = ("memory_rows", "disk_rows", "disk_bytes", "memory_hits", "cache_hits", "disk_reads")

Tiers = dict[str, dict[str, int]]


def tiers_of_run(run: str) -> Tiers:
    """Return what the result of a run, else its last line of metrics, says of tiers, by table.

    Empty for a checkpoint, a store, and a run whose tables have none.
    """
    folder = Path(run)
    try:
        tables = json.loads((folder / RESULT_FILE).read_text()).get("tables", {})
        return _whole(tables)
    except (OSError, ValueError, AttributeError):
        pass  # it runs, or ended without one
    line = last_metrics(folder, ("tiers",))
    return {} if line is None else _whole(line["tiers"])


def _whole(tables: dict[str, Any]) -> Tiers:
    return {name: table for name, table in tables.items() if set(_NEEDED) <= set(table)}


def show_tiers(console: Console, tiers: Tiers, names: list[str]) -> None:
    """Print a line for each of some tables that has rows on disk, and how many have none."""
    tiered = [name for name in names if name in tiers]
    shown = [name for name in tiered if tiers[name]["disk_rows"]]
    if tiered:
        inside = len(tiered) - len(shown)
        rest = f"; {inside} of {len(tiered)} tables with tiers are in memory" if inside else ""
        console.print(f"\nWhere rows were when the run last said so{rest}", style="bold")
    for name in shown:
        console.print(f"{name}: {_in_words(tiers[name])}", soft_wrap=True)


def show_tiers_of_table(console: Console, table: dict[str, int]) -> None:
    """Print where the rows of one table are."""
    console.print("\nWhere its rows were when the run last said so", style="bold")
    console.print(_in_words(table), soft_wrap=True)


def _in_words(table: dict[str, int]) -> str:
    text = (
        f"{table['memory_rows']:,} in memory, {table['disk_rows']:,} on disk"
        f" ({decimal(table['disk_bytes'])})"
    )
    asked = table["memory_hits"] + table["cache_hits"] + table["disk_reads"]
    if asked:
        shares = (100 * table[kind] / asked for kind in ("memory_hits", "cache_hits"))
        text += "; of rows asked for {:.1f} % in memory, {:.1f} % just read".format(*shares)
        text += f", {100 * table['disk_reads'] / asked:.1f} % read from disk"
    if ahead := table.get("prefetched", 0):
        reads = ahead + table["disk_reads"]
        text += f"; {100 * ahead / reads:.1f} % of the disk's reads were ahead of who asked"
    return text
