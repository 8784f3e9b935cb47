"""Write the probability of label 1 for every row of Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ps.checkpoint.read import CheckpointReader
from runtime.durable import make_folder, new_file
from runtime.storage import StorageError
from scheduler import RunDirectoryError
from scheduler.job.errors import nearest
from scheduler.run.directory import latest_checkpoint
from synchromesh.outputs import OutputError, check_place
from worker.contract import check_contract
from worker.data.file_columns import named_schema
from worker.data.footers import open_source, read_footer
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.data.reading import read_file
from worker.errors import DataError
from worker.inference import ModelError, Predictor, probabilities, saved_model
from worker.spec import DataSpec, ModelSpec

PREDICTION = "prediction"
BATCH_SIZE = 8192
ROW_GROUP_ROWS = 1 << 17
ROW_GROUP_BYTES = 64 << 20


BAD_INPUT = (DataError, ModelError, OutputError, RunDirectoryError, StorageError)


def predict(
    checkpoint_or_run: str | Path,
    input: str,
    output: str | Path,
    *,
    columns: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write one row for each row of `input`, in its order.

    Args:
        checkpoint_or_run: a checkpoint, or a run directory: its newest one.
        input: file, folder, glob, URL or table, as data.train; the label need not be in it.
        output: local Parquet file, with the columns that are carried over and `prediction`
            (float32), the probability of label 1; of a model of several tasks `prediction_TASK` for
            each. It appears whole or not at all.
        columns: those of `input` that are carried over.
        overwrite: whether `output` may be there already.

    Returns:
        `out`, `rows`, `checkpoint`, `step`.

    Raises:
        CheckpointError, RunDirectoryError, DataError, OutputError: what was named can't be used.
        ValueError: the model gives NaN for a row, which is named.
    """
    place = checked_output(str(output), overwrite=overwrite)
    checkpoint = latest_checkpoint(str(checkpoint_or_run))
    saved = saved_model(CheckpointReader(checkpoint))
    predictions = prediction_columns(saved.spec)
    for name in predictions:
        if name in columns:
            raise OutputError(f"--columns names {name!r}, which is a column that is written")
    features = saved.features.inputs()
    data = DataSpec(features=features, batch_size=BATCH_SIZE)
    plan = make_plan([input], data, keep=list(columns))
    check_contract(features, plan.kinds, saved.contract, str(checkpoint))
    schema = output_schema(plan, list(columns), predictions)
    if place.resolve() in {Path(file.path).resolve() for file in plan.files}:
        raise OutputError(f"{place} is a file of INPUT; name another OUTPUT")
    predictor = Predictor.from_checkpoint(checkpoint)
    rows = 0
    make_folder(place.parent)
    with (
        new_file(place) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for table in row_groups(predicted(predictor, plan, schema)):
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
    return {
        "out": str(place),
        "rows": rows,
        "checkpoint": str(checkpoint),
        "step": predictor.step,
    }


def prediction_columns(model: ModelSpec) -> list[str]:
    """Return the names of the columns that predictions are written to, in their order."""
    return [f"{PREDICTION}_{task}" for task in model.tasks] or [PREDICTION]


def predicted(predictor: Predictor, plan: Plan, schema: pa.Schema) -> Iterator[pa.Table]:
    """Predict file after file; each table has at most BATCH_SIZE rows."""
    features = predictor.features.inputs()
    kept = schema.names[: -len(prediction_columns(predictor.model))]
    for file in plan.files:
        done = 0
        for rows, batch in read_file(file, features, BATCH_SIZE, keep=kept):
            logits = predictor.logits(batch)
            by_task = logits.reshape(len(logits), -1)
            undefined = np.isnan(by_task).any(axis=1)
            if undefined.any():
                row = done + int(np.argmax(undefined))
                raise ValueError(
                    f"{file.path!r}, row {row}: the model gives NaN: its parameters have diverged."
                    " Train it again with lower learning rates"
                )
            columns = [rows.column(name) for name in kept]
            columns += [pa.array(probabilities(each)) for each in by_task.T]
            table = pa.table(columns, names=schema.names)
            yield table.cast(schema)
            done += len(logits)


def row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables until they make a row group by rows or, where values are large, by bytes."""
    pending: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        pending.append(table)
        rows += table.num_rows
        size += table.nbytes
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(pending)
            pending, rows, size = [], 0, 0
    if pending:
        yield pa.concat_tables(pending)


def output_schema(
    plan: Plan, columns: list[str], predictions: Sequence[str] = (PREDICTION,)
) -> pa.Schema:
    """Return the columns that are carried over, of one type in all files, and the predictions."""
    fields: dict[str, pa.Field] = {}
    for file in plan.files if columns else ():
        with open_source(file.path) as source:
            found = named_schema(read_footer(source, file.path).schema, file.columns)
        for name in columns:
            times = len(found.get_all_field_indices(name))
            if times != 1:
                raise DataError(
                    what="a column that --columns names must be once in every file",
                    file=file.path,
                    column=name,
                    got=f"got {times}" + ("" if times else nearest(name, found.names)),
                )
            own = pa.field(name, found.field(name).type)
            if pa.types.is_null(fields.setdefault(name, own).type):
                fields[name] = own
            if fields[name].type != own.type and not pa.types.is_null(own.type):
                raise DataError(
                    what="a column that --columns names differs between files",
                    file=file.path,
                    column=name,
                    got=f"got {own.type}, expected {fields[name].type} as in the first file",
                    remedy="Write the files with one type, or leave the column out",
                )
    return pa.schema([*fields.values(), *(pa.field(name, pa.float32()) for name in predictions)])


def checked_output(name: str, *, overwrite: bool) -> Path:
    """Refuse a place where the output can't appear, before any work is done."""
    path = Path(name)
    if "://" in name:
        raise OutputError(f"OUTPUT must be a local file, got {name}")
    check_place(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; OUTPUT must be a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; use --overwrite, or name another OUTPUT")
    return path
