"""Write the embedding tables of a checkpoint as Parquet, a folder for each."""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedding import TableSpec
from embedding.arrow import row_schema, to_arrow
from ps.checkpoint.read import CheckpointReader
from runtime.strict_json import json_text
from scheduler.job.errors import nearest
from scheduler.run.directory import latest_checkpoint
from worker.datasets.files import PartWriter

ABOUT_FILE = "export.json"
FORMAT = "synchromesh-embeddings"
STAGING = ".partial"
ROW_GROUP_ROWS = 1 << 16
PART_BYTES = 256 << 20


class ExportError(ValueError):
    """Tables that are not there, or a place where no export may be written."""


def export_embeddings(
    checkpoint_or_run: str | Path,
    out: str | Path,
    *,
    tables: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write OUT/TABLE/part-00000.parquet, ... for each table, and at the end OUT/export.json.

    Columns: key (int64), vector (float32 list of fixed size) and, where the job tracked usage,
    frequency and version (int64). Keys that are counted but not admitted have no row.

    Args:
        checkpoint_or_run: a checkpoint, or a run directory: its newest one.
        out: local folder, made where it is missing.
        tables: names; None: all.
        overwrite: whether an export in `out` may be replaced.

    Returns:
        `out`, `checkpoint`, `step`, and `rows` of each table.

    Raises:
        CheckpointError, RunDirectoryError, ExportError: what was named can't be used.
    """
    checkpoint = latest_checkpoint(str(checkpoint_or_run))
    reader = CheckpointReader(checkpoint)
    wanted = wanted_tables(reader, tables)
    if "://" in str(out):
        raise ExportError(f"OUT_DIR must be a local folder, got {out}")
    place = Path(out)
    line = {"out": str(place), "checkpoint": str(checkpoint), "step": reader.manifest.step}
    with staged(place, overwrite=overwrite) as staging:
        rows = {table.name: write_table(staging / table.name, table, reader) for table in wanted}
        about = {"format": FORMAT, **line, "tables": rows}
        (staging / ABOUT_FILE).write_text(json_text(about, indent=1) + "\n")
    return {**line, "rows": rows}


def wanted_tables(reader: CheckpointReader, names: Sequence[str] | None) -> list[TableSpec]:
    known = {table.name: table for table in reader.store.tables}
    for name in names or ():
        if name not in known:
            raise ExportError(f"the checkpoint has no table {name!r}{nearest(name, list(known))}")
    return [known[name] for name in (known if names is None else names)]


def write_table(directory: Path, table: TableSpec, reader: CheckpointReader) -> int:
    """Write one table part by part; return its rows."""
    schema = row_schema(table, slots=False)
    part_rows = max(1, PART_BYTES // (24 + 4 * table.dim))
    rows = 0
    with PartWriter(
        directory, schema, row_group_rows=ROW_GROUP_ROWS, part_rows=itertools.repeat(part_rows)
    ) as writer:
        for entries in reader.rows(table):
            writer.write(to_arrow(entries, table, slots=False))
            rows += len(entries.keys)
    return rows


@contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder inside `out` whose content moves there when the block succeeds.

    ABOUT_FILE goes first and comes last: an export that has one is complete. Where the block
    raises, `out` holds what it held before.
    """
    old = held_export(out, overwrite=overwrite)
    existed = out.exists()
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        (out / ABOUT_FILE).unlink(missing_ok=True)
        for name in old:
            shutil.rmtree(out / name, ignore_errors=True)
        names = sorted(path.name for path in staging.iterdir())
        for name in sorted(names, key=lambda name: name == ABOUT_FILE):
            (staging / name).rename(out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def held_export(out: Path, *, overwrite: bool) -> list[str]:
    """Return the tables of the export that is to be replaced; refuse to touch anything else."""
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is not a folder; name another OUT_DIR")
    held = {path.name for path in out.iterdir() if path.name != STAGING} if out.exists() else set()
    if not held:
        return []
    if not overwrite:
        raise ExportError(f"{out} is not empty; use --overwrite, or name another OUT_DIR")
    try:
        about = json.loads((out / ABOUT_FILE).read_text())
        tables = list(about["tables"]) if about["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        tables = []
    foreign = sorted(held - {ABOUT_FILE, *tables})
    if foreign or not tables:
        raise ExportError(
            f"{out} holds {(foreign or sorted(held))[0]!r}, which is not part of an export; it"
            " won't be overwritten, name another OUT_DIR"
        )
    return tables
