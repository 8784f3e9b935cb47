"""What a server says of itself: every figure once, and every view reads it from here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from embedding.table.tiered_values import TierFigures
from runtime.process_figures import NOT_MEASURED, ProcessFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFigures:
    """Of one table on one server, or, `added`, on all of them.

    Args:
        rows: admitted keys.
        unadmitted: keys that are counted.
        evicted: rows so far.
        non_finite: updates that were left out because their sum was not finite.
        bytes: of memory.
        tiers: where its values are; None: all are in memory.
    """

    rows: int = 0
    unadmitted: int = 0
    evicted: int = 0
    non_finite: int = 0
    bytes: int = 0
    tiers: TierFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """Of one server; counts run from its start.

    Args:
        step: that it has reached.
        tables: by name.
        dense_non_finite: updates of blocks that were left out, as those of tables.
        gradients_of_evicted_keys: that were discarded.
        process: what it measured of itself.
        pid, node: where it runs.
    """

    step: int = 0
    tables: dict[str, TableFigures] = field(default_factory=dict)
    dense_non_finite: int = 0
    contributions_superseded: int = 0
    gradients_of_evicted_keys: int = 0
    process: ProcessFigures = NOT_MEASURED
    pid: int = 0
    node: str = ""


def added(servers: Iterable[ServerFigures]) -> dict[str, TableFigures]:
    """Return the figures of each table over all servers."""
    parts: dict[str, list[TableFigures]] = {}
    for server in servers:
        for name, table in server.tables.items():
            parts.setdefault(name, []).append(table)
    return {
        name: TableFigures(
            **_sums(TableFigures, tables, but="tiers"),
            tiers=_tiers_of(tables),
        )
        for name, tables in parts.items()
    }


def _tiers_of(tables: Sequence[TableFigures]) -> TierFigures | None:
    found = [table.tiers for table in tables if table.tiers is not None]
    return TierFigures(**_sums(TierFigures, found)) if found else None


def _sums(kind: type, figures: Sequence[Any], *, but: str = "") -> dict[str, int]:
    names = [field.name for field in fields(kind) if field.name != but]
    return {name: sum(getattr(each, name) for each in figures) for name in names}
