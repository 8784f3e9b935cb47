"""Files and tables as other packages write them today, and the table of these in docs/data.md.

A new case is a line of CASES: what writes it, what of it is special, and a function that writes
the columns of `rows()` that it is given. A job must have the same keys and values of it as of the
same columns written by pyarrow, or refuse it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table as IcebergTable

from worker.errors import DataError

pytestmark = pytest.mark.writers

ROOT = Path(__file__).parents[3]
BEGIN, END = "<!-- writers: begin -->", "<!-- writers: end -->"
ROWS = 60

KINDS = {
    "i": "int64",
    "u": "uint64",
    "s": "strings",
    "yes": "booleans",
    "day": "dates",
    "at": "timestamps",
    "tags": "lists of integers",
    "names": "lists of strings",
    "id": "UUIDs",
}
"""The sparse columns of `rows()`, and what the table of the documentation calls them."""

COMMON = tuple(name for name in KINDS if name != "id")
SIGNED = tuple(name for name in COMMON if name != "u")


def rows() -> pa.Table:
    """Rows with nulls in every column but the label and `n`, the row's number."""
    numbers = range(ROWS)
    moment = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)

    def some(values: Sequence[Any], every: int) -> list[Any]:
        return [None if n % every == 0 else value for n, value in enumerate(values)]

    ids = pa.array(some([n.to_bytes(16, "big") for n in numbers], 7), pa.binary(16))
    return pa.table(
        {
            "label": pa.array([n % 2 for n in numbers], pa.int64()),
            "n": pa.array(numbers, pa.int64()),
            "f": pa.array(some([n / 8 - 2 for n in numbers], 7), pa.float64()),
            "i": pa.array(some([(n - 30) * 2**57 for n in numbers], 5), pa.int64()),
            "u": pa.array(some([2**63 + n // 2 for n in numbers], 6), pa.uint64()),
            "s": pa.array(some([f"é/{n % 9}%2F" if n % 4 else "" for n in numbers], 8)),
            "yes": pa.array(some([n % 3 == 0 for n in numbers], 9), pa.bool_()),
            "day": pa.array(some([date(1969, 12, 1) + timedelta(n) for n in numbers], 10)),
            "at": pa.array(
                some([moment + timedelta(hours=n) for n in numbers], 11), pa.timestamp("us", "UTC")
            ),
            "tags": pa.array(some([list(range(n % 4)) for n in numbers], 6), pa.list_(pa.int64())),
            "names": pa.array(
                some([[f"t{n % 5}", None][: n % 3] for n in numbers], 7), pa.list_(pa.string())
            ),
            "id": pa.ExtensionArray.from_storage(pa.uuid(), ids),
        }
    )


Write = Callable[[pa.Table, Path], "str | None"]


@dataclass(frozen=True)
class Case:
    """Something that a package writes.

    Args:
        package: that writes it; its version is shown.
        what: a few words for the documentation.
        write: writes a table to an empty folder, and returns what a job names; None: the folder.
        sparse: columns of `rows()` that it is given, beside `label`, `n` and `f`.
        kinds: what the documentation calls them; None: as `KINDS` does.
        in_order: whether the rows come in the order in which they were written.
        refused: what the message says, where it can't be read.
    """

    package: str
    what: str
    write: Write
    sparse: tuple[str, ...] = COMMON
    kinds: str | None = None
    in_order: bool = True
    refused: str | None = None


# Polars


def polars_file(table: pa.Table, folder: Path) -> None:
    pl.from_arrow(table).write_parquet(folder / "a.parquet")


def polars_sink(table: pa.Table, folder: Path) -> None:
    pl.from_arrow(table).lazy().sink_parquet(folder / "a.parquet", row_group_size=7)


def polars_categories(table: pa.Table, folder: Path) -> None:
    frame = pl.from_arrow(table)
    enum = pl.Enum(frame["s"].drop_nulls().unique().sort())
    frame[:20].with_columns(s=pl.col("s").cast(pl.Categorical)).write_parquet(folder / "1.parquet")
    frame[20:].with_columns(s=pl.col("s").cast(enum)).write_parquet(folder / "2.parquet")


def polars_int128(table: pa.Table, folder: Path) -> None:
    frame = pl.from_arrow(table)
    frame.with_columns(wide=pl.col("n").cast(pl.Int128)).write_parquet(folder / "a.parquet")


def polars_folders(table: pa.Table, folder: Path) -> None:
    pl.from_arrow(table).write_parquet(folder, partition_by=["s"])


# DuckDB


def copy(table: pa.Table, target: Path, options: str = "", select: str = "*") -> None:
    with duckdb.connect() as connection:
        connection.register("given", table)
        connection.execute(
            f"COPY (SELECT {select} FROM given) TO '{target}' (FORMAT parquet{options})"
        )


def duckdb_file(table: pa.Table, folder: Path) -> None:
    copy(table, folder / "a.parquet")


def duckdb_folders(table: pa.Table, folder: Path) -> None:
    copy(table, folder / "d", ", PARTITION_BY (s), OVERWRITE_OR_IGNORE")
    for child in (folder / "d").iterdir():
        child.rename(folder / child.name)
    (folder / "d").rmdir()


def duckdb_decimals(table: pa.Table, folder: Path) -> None:
    case = "CASE WHEN label = 1 THEN 1.0 ELSE 0.0 END AS label"
    select = f"* REPLACE ({case}, i::DECIMAL(38, 0) AS i, f::DECIMAL(9, 3) AS f)"
    copy(table, folder / "a.parquet", select=select)


def duckdb_json(table: pa.Table, folder: Path) -> None:
    copy(table, folder / "a.parquet", select="* REPLACE (to_json(tags) AS tags)")


# Delta


def delta(table: pa.Table, folder: Path) -> str:
    write_deltalake(folder, table)
    return f"delta://{folder}"


def delta_deleted(table: pa.Table, folder: Path) -> str:
    write_deltalake(folder, table)
    again = table.set_column(1, "n", pa.array(range(1000, 1000 + ROWS)))
    write_deltalake(folder, again, mode="append")
    DeltaTable(folder).delete("n >= 1000")
    return f"delta://{folder}"


def delta_partitioned(table: pa.Table, folder: Path) -> str:
    write_deltalake(folder, table, partition_by=["yes", "day"])
    return f"delta://{folder}"


def delta_folder(table: pa.Table, folder: Path) -> None:
    write_deltalake(folder, table)


# Iceberg


def iceberg_table(folder: Path, schema: pa.Schema) -> IcebergTable:
    catalog = SqlCatalog("t", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}")
    catalog.create_namespace("ns")
    return catalog.create_table("ns.t", schema)


def iceberg(table: pa.Table, folder: Path) -> str:
    iceberg_table(folder, table.schema).append(table)
    return f"iceberg://{folder}/ns/t"


def iceberg_changed(table: pa.Table, folder: Path) -> str:
    old = {"s": "old_s", "i": "old_i"}
    names = [old.get(name, name) for name in table.column_names]
    made = iceberg_table(folder, table.rename_columns(names).schema)
    made.append(table.rename_columns(names).slice(0, 40))
    with made.update_schema() as change:
        for name, before in old.items():
            change.rename_column(before, name)
    made.append(table.slice(30, 30))
    made.delete("n >= 30 and n < 40")
    made.append(table.slice(30, 10))
    return f"iceberg://{folder}/ns/t"


def iceberg_folder(table: pa.Table, folder: Path) -> str:
    return iceberg(table, folder).removeprefix("iceberg://") + "/data"


CASES = (
    Case("polars", "`write_parquet`", polars_file),
    Case("polars", "`sink_parquet`, groups of 7 rows", polars_sink),
    Case("polars", "`Categorical` and `Enum`", polars_categories, ("s",)),
    Case("polars", "folders by `partition_by`", polars_folders, ("i", "s"), in_order=False),
    Case("polars", "`Int128`", polars_int128, (), "a column beside", refused="128-bit integer"),
    Case("duckdb", "`COPY ... TO`", duckdb_file),
    Case("duckdb", "folders by `PARTITION_BY`", duckdb_folders, ("i", "s"), in_order=False),
    Case("duckdb", "decimals", duckdb_decimals, ("i",), "label, dense and sparse"),
    Case("duckdb", "UUIDs", duckdb_file, ("id",)),
    Case("duckdb", "`to_json` of lists", duckdb_json, ("tags",), refused="JSON text"),
    Case("deltalake", "`write_deltalake`", delta, SIGNED),
    Case("deltalake", "the same after `delete`", delta_deleted, SIGNED, in_order=False),
    Case("deltalake", "`partition_by`", delta_partitioned, SIGNED, in_order=False),
    Case("deltalake", "its folder as files", delta_folder, SIGNED, refused="delta://"),
    Case("pyiceberg", "`append`", iceberg, SIGNED),
    Case("pyiceberg", "UUIDs", iceberg, ("id",)),
    Case("pyiceberg", "columns renamed, rows deleted", iceberg_changed, SIGNED, in_order=False),
    Case("pyiceberg", "its folder as files", iceberg_folder, SIGNED, refused="iceberg://"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.package}: {case.what}")
def test_what_others_write_gives_the_keys_of_the_same_columns_by_pyarrow(
    case: Case, tmp_path: Path, read: Callable[..., Any]
) -> None:
    columns = {"sparse": ["n", *case.sparse], "dense": ["n", "f"], "label": "label"}
    table = rows().select(["label", "n", "f", *case.sparse])
    pq.write_table(table, tmp_path / "expected.parquet")
    folder = tmp_path / "given"
    folder.mkdir()
    named = case.write(table, folder) or folder

    if case.refused is not None:
        with pytest.raises((DataError, OSError), match=case.refused):
            read(named, **columns)
        return
    found, expected = read(named, **columns), read(tmp_path / "expected.parquet", **columns)

    order = [key for (key,) in found.keys("n")]
    assert sorted(order) == list(range(ROWS))
    if case.in_order:
        assert order == list(range(ROWS))
    for name in case.sparse:
        assert found.keys(name) == [expected.keys(name)[n] for n in order], name
    assert found.batch.labels.tolist() == expected.batch.labels[order].tolist()
    assert found.batch.dense.tolist() == expected.batch.dense[order].tolist()


def test_the_documentation_has_the_table_of_these() -> None:
    """Print what it should be; versions there are those of the last time that it was written."""
    text = (ROOT / "docs" / "data.md").read_text()
    documented = text.partition(BEGIN)[2].partition(END)[0].strip()
    lines = ["| written by | what | columns | a job |", "|---|---|---|---|"]
    for case in CASES:
        kinds = case.kinds or ", ".join(KINDS[name] for name in case.sparse)
        outcome = "reads the same keys and values"
        if not case.in_order:
            outcome += ", in another order"
        if case.refused is not None:
            outcome = f"refuses it: `{case.refused}`"
        lines.append(
            f"| {case.package} {version(case.package)} | {case.what} | {kinds} | {outcome} |"
        )
    table = "\n".join(lines)

    def plain(text: str) -> str:
        return re.sub(r"(?m)^(\| \w+) \S+ ", r"\1 ", text)

    assert plain(documented) == plain(table), f"docs/data.md should have\n{table}"
