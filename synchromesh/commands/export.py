"""`synchromesh export`: tables as Parquet."""

import click
import pyarrow as pa

from ps.checkpoint.manifest import CheckpointError
from scheduler import RunDirectoryError
from synchromesh.commands.answers import FAILURES, answering, json_option, names, print_json
from synchromesh.exporting import ExportError, export_embeddings


@click.command(epilog="Example: synchromesh export runs/dlrm runs/embeddings --tables C3,C4")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("out", type=click.Path(), metavar="OUT_DIR")
@click.option("--tables", callback=names, metavar="A,B", help="Tables to export (default: all).")
@click.option("--overwrite", is_flag=True, help="Replace an export in OUT_DIR.")
@json_option
def command(
    checkpoint: str, out: str, tables: list[str] | None, overwrite: bool, as_json: bool
) -> None:
    """Write the embedding tables of a checkpoint, of a run its newest one, as Parquet.

    OUT_DIR/TABLE/part-00000.parquet, ... have the columns key (int64), vector (float32 list of
    fixed size) and, where the job tracked usage, frequency and version (int64); OUT_DIR/export.json
    comes last. Keys that are counted but not admitted have no row. Prints a line of JSON with the
    rows of each table.
    """
    with answering(
        CheckpointError,
        ExportError,
        RunDirectoryError,
        failures=(*FAILURES, pa.ArrowException),
        failed="failed: ",
        interrupted="interrupted, nothing was written",
    ):
        line = export_embeddings(checkpoint, out, tables=tables, overwrite=overwrite)
    print_json(line)
