"""Tables that read one another: which may, and how the tables of a store are made together."""

from collections.abc import Sequence

from embedding.spec import TableSpec
from embedding.variable import EmbeddingVariable


def check_links(specs: Sequence[TableSpec]) -> None:
    """Check the tables that others name as their base.

    Raises:
        ValueError: there is no such table, it has a base itself, or a table of static rows has
            another dim, an admission rule, or comes before the table that starts from it.
    """
    tables = {spec.name: spec for spec in specs}
    order = [spec.name for spec in specs]
    for spec in specs:
        if spec.base is None:
            continue
        base = tables.get(spec.base)
        if base is None or base.base is not None:
            found = "there is none" if base is None else f"it reads table {base.base} itself"
            raise ValueError(f"table {spec.name} reads table {spec.base}, but {found}")
        if spec.warm_start is None:
            continue
        if (base.dim, base.admission) != (spec.dim, None):
            raise ValueError(
                f"table {spec.name} starts from rows of table {base.name}, which must have its dim"
                f" {spec.dim} and no admission, got dim {base.dim} and {base.admission}"
            )
        if order.index(base.name) < order.index(spec.name):
            # Steps apply tables in order: rows must start from what was pulled, before the step.
            raise ValueError(
                f"table {spec.name} must be listed before table {base.name}, from which it starts"
            )


def make_variables(specs: Sequence[TableSpec]) -> list[EmbeddingVariable]:
    """Make empty tables, in the order given, those that read another one with that as their base.

    Raises:
        ValueError: as `check_links`.
    """
    check_links(specs)
    made = {spec.name: EmbeddingVariable(spec) for spec in specs if spec.base is None}
    for spec in specs:
        if spec.base is not None:
            made[spec.name] = EmbeddingVariable(spec, base=made[spec.base])
    return [made[spec.name] for spec in specs]
