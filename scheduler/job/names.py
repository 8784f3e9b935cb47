"""Names in a job file: of columns, features and tables."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from embedding.spec.table import is_table_name


def text_name(value: Any) -> Any:
    """Refuse what YAML takes for a number, a date, a truth value or nothing: columns 1, yes, on."""
    if value is None:
        raise ValueError("a name is missing; YAML reads an empty one, ~ and null as nothing")
    if isinstance(value, int | float) or hasattr(value, "isoformat"):
        kind = "truth value" if isinstance(value, bool) else type(value).__name__
        article = "an" if kind == "int" else "a"
        raise ValueError(
            f"a name must be text, but YAML reads this one as {article} {kind}, {value};"
            ' put it into quotes as the file has it ("1", "on")'
        )
    return value


Name = Annotated[str, BeforeValidator(text_name)]


def check_table_name(column: str, feature: str, table: str) -> None:
    """Refuse a feature whose table can't have the name that it is given.

    Raises:
        ValueError: says where the name came from, and how to give another one.
    """
    if is_table_name(table):
        return
    ours = "".join(c if is_table_name("x" + c) else "_" for c in table).lstrip(".") or "table"
    if table == column == feature:
        which = f"column {column!r} gives its table its name"
        remedy = f"name the feature, or its table, otherwise: {{column: {column!r}, name: {ours}}}"
    else:
        which = f"{'table' if table != feature else 'name'} {table!r} is the name of a table"
        remedy = f"write {ours}, say"
    raise ValueError(f"{which}, which may hold letters, digits, '_', '.' and '-'; {remedy}")
