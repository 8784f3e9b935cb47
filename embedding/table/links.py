"""Tables that read one another: which may, and how the tables of a store are made together."""

from collections.abc import Mapping, Sequence
from typing import Literal

from embedding.spec.table import TableSpec
from embedding.spec.tiers import Tiers
from embedding.table.sharing import budget_of
from embedding.table.variable import EmbeddingVariable


def check_links(specs: Sequence[TableSpec]) -> None:
    """Check the tables that others name as their base.

    Raises:
        ValueError: a name is there twice, there is no such table, it has a base itself, or a table
            of static rows has another dim or value_dtype, an admission rule, or comes before the
            table that starts from it, or one whose frequency is asked does not track usage.
    """
    tables = {spec.name: spec for spec in specs}
    if len(tables) < len(specs):
        names = [spec.name for spec in specs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"table {twice[0]} is listed twice")
    order = [spec.name for spec in specs]
    for spec in specs:
        if spec.base is None:
            continue
        base = tables.get(spec.base)
        if base is None or base.base is not None:
            found = "there is none" if base is None else f"it reads table {base.base} itself"
            raise ValueError(f"table {spec.name} reads table {spec.base}, but {found}")
        if spec.warm_start is None:
            base.require_usage(f"by the admission of table {spec.name}")
            continue
        found_as = (base.dim, base.value_dtype, base.admission)
        if found_as != (spec.dim, spec.value_dtype, None):
            raise ValueError(
                f"table {spec.name} starts from rows of table {base.name}, which must have its dim"
                f" {spec.dim}, its value_dtype {spec.value_dtype} and no admission, got"
                f" {base.dim}, {base.value_dtype} and {base.admission}"
            )
        if order.index(base.name) < order.index(spec.name):
            # Steps apply tables in order: rows must start from what was pulled, before the step.
            raise ValueError(
                f"table {spec.name} must be listed before table {base.name}, from which it starts"
            )


def make_variables(
    specs: Sequence[TableSpec],
    *,
    on_non_finite: Literal["fail", "skip"] = "fail",
    tiers: Mapping[str, Tiers] | None = None,
) -> list[EmbeddingVariable]:
    """Make empty tables, in the order given, those that read another one with that as their base.

    They share the address space of the process, see `sharing.budget_of`.

    Args:
        on_non_finite: of every table, see `EmbeddingVariable`.
        tiers: by name, of tables whose values memory is not to hold all.

    Raises:
        ValueError: as `check_links`, or tiers leave no room for a few rows.
        MemoryError: as `budget_of`, or address space can't be had.
        TierError: a path of tiers can't have a file.
    """
    check_links(specs)
    budget = budget_of(specs)
    made: dict[str, EmbeddingVariable] = {}
    for spec in sorted(specs, key=lambda spec: spec.base is not None):
        base = None if spec.base is None else made[spec.base]
        made[spec.name] = EmbeddingVariable(
            spec,
            base=base,
            on_non_finite=on_non_finite,
            budget=budget,
            tiers=None if tiers is None else tiers.get(spec.name),
        )
    return [made[spec.name] for spec in specs]
