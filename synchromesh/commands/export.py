"""`synchromesh export`: tables and the dense part for other software."""

import click
import pyarrow as pa

from scheduler import RunDirectoryError
from synchromesh.commands.answers import FAILURES, answering, json_option, names, print_json
from synchromesh.exporting import ExportError, Format, export_model
from synchromesh.outputs import OutputError
from worker.inference import ModelError


@click.command(epilog="Example: synchromesh export runs/dlrm runs/embeddings --tables C3,C4")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("out", type=click.Path(), metavar="OUT_DIR")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["parquet", "safetensors", "onnx"]),
    multiple=True,
    default=["parquet"],
    help="May be given more than once (default: parquet).",
)
@click.option("--tables", callback=names, metavar="A,B", help="Tables to export (default: all).")
@click.option("--overwrite", is_flag=True, help="Replace an export in OUT_DIR.")
@json_option
def command(
    checkpoint: str,
    out: str,
    formats: tuple[Format, ...],
    tables: list[str] | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint, of a run its newest one, for other software.

    parquet: OUT_DIR/TABLE/part-00000.parquet, ... with the columns key (int64), vector (float32
    list of fixed size) and, where the job tracked usage, frequency and version (int64).
    safetensors: OUT_DIR/TABLE/rows.safetensors with keys (ascending) and vectors, and
    OUT_DIR/dense.safetensors. onnx: OUT_DIR/model.onnx, the dense part, from pooled vectors and
    dense features to predictions. docs/serving-elsewhere.md says how they go together.

    OUT_DIR/export.json comes last. Keys that are counted but not admitted have no row. Prints a
    line of JSON with the rows of each table.
    """
    with answering(
        ExportError,
        ModelError,
        OutputError,
        RunDirectoryError,
        failures=(*FAILURES, pa.ArrowException),
        failed="failed: ",
        interrupted="interrupted, nothing was written",
    ):
        line = export_model(checkpoint, out, formats=formats, tables=tables, overwrite=overwrite)
    print_json(line)
