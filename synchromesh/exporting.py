"""Take a checkpoint elsewhere: its tables as Parquet or safetensors, its dense part as ONNX."""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from embedding import TableSpec
from embedding.arrow import row_schema, to_arrow
from ps.checkpoint.read import CheckpointReader
from runtime.strict_json import json_text
from scheduler.job.errors import nearest
from scheduler.run.directory import latest_checkpoint
from synchromesh.outputs import check_place
from worker.datasets.files import PartWriter
from worker.inference import check_size, saved_model
from worker.models import build_model, parameter_views
from worker.spec import ModelSpec

Format = Literal["parquet", "safetensors", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)

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
    return export_model(
        checkpoint_or_run, out, formats=("parquet",), tables=tables, overwrite=overwrite
    )


def export_model(
    checkpoint_or_run: str | Path,
    out: str | Path,
    *,
    formats: Sequence[Format],
    tables: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint for other software, and at the end OUT/export.json, which says what it is.

    parquet: OUT/TABLE/part-00000.parquet, ... as `export_embeddings` has it.
    safetensors: OUT/TABLE/rows.safetensors with `keys`, int64[n], ascending, and `vectors`,
    float32[n, dim]; OUT/dense.safetensors with the dense parameters by name.
    onnx: OUT/model.onnx, see `synchromesh.onnx_model`.

    Args:
        checkpoint_or_run: a checkpoint, or a run directory: its newest one.
        out: local folder, made where it is missing.
        formats: one or more.
        tables: names; None: all. Of no use to onnx alone.
        overwrite: whether an export in `out` may be replaced.

    Returns:
        `out`, `checkpoint`, `step`, and `rows` of each table that was written.

    Raises:
        CheckpointError, RunDirectoryError, ExportError, OutputError: what was named can't be used,
            or a library is missing.
    """
    checkpoint = latest_checkpoint(str(checkpoint_or_run))
    reader = CheckpointReader(checkpoint)
    _check_formats(formats, tables)
    wanted = wanted_tables(reader, tables) if {"parquet", "safetensors"} & {*formats} else []
    if "://" in str(out):
        raise ExportError(f"OUT_DIR must be a local folder, got {out}")
    place = Path(out)
    check_place(place)
    line = {"out": str(place), "checkpoint": str(checkpoint), "step": reader.manifest.step}
    with staged(place, overwrite=overwrite) as staging:
        rows: dict[str, int] = {}
        files: list[str] = []
        for table in wanted:
            if "parquet" in formats:
                rows[table.name] = write_table(staging / table.name, table, reader)
            if "safetensors" in formats:
                rows[table.name] = write_safetensors(staging / table.name, table, reader)
        if {"safetensors", "onnx"} & {*formats}:
            files = _write_dense(staging, reader, formats)
        about = {"format": FORMAT, **line, "tables": rows, "files": files}
        if files:
            about["model"] = about_model(reader)
        (staging / ABOUT_FILE).write_text(json_text(about, indent=1) + "\n")
    return {**line, "rows": rows}


def _check_formats(formats: Sequence[Format], tables: Sequence[str] | None) -> None:
    """Refuse what can't be written, before anything is."""
    if not {"parquet", "safetensors"} & {*formats} and tables is not None:
        raise ExportError("--tables is of the formats parquet and safetensors")
    for name in ("safetensors", "onnx"):
        if name in formats and find_spec(name) is None:
            raise ExportError(f"{name} is missing: pip install 'synchromesh[export]'")


def _write_dense(folder: Path, reader: CheckpointReader, formats: Sequence[Format]) -> list[str]:
    """Write the dense part in every format that has one; return the files' names."""
    saved, dense = saved_model(reader), reader.dense_vector()
    check_size(saved.spec, dense.size, reader.directory)
    files = []
    if "safetensors" in formats:
        _save_arrays(folder / "dense.safetensors", _dense_arrays(saved.spec, dense))
        files.append("dense.safetensors")
    if "onnx" in formats:
        from synchromesh.onnx_model import GraphError, onnx_model

        try:
            model = onnx_model(saved.spec, saved.features, dense)
        except GraphError as error:
            raise ExportError(str(error)) from error
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        files.append("model.onnx")
    return files


def _dense_arrays(
    spec: ModelSpec, dense: npt.NDArray[np.float32]
) -> Mapping[str, npt.NDArray[Any]]:
    """Return the dense parameters by name; of a torch model what its class loads."""
    model = build_model(spec)
    state = getattr(model, "state", None)
    if state is not None:
        held: Mapping[str, npt.NDArray[Any]] = state(dense)
        return held
    views = parameter_views(dense, model.parameters)
    return {p.name: v for p, v in zip(model.parameters, views, strict=True)}


def about_model(reader: CheckpointReader) -> dict[str, Any]:
    """Return what whoever feeds the dense part must know: columns, tables, pooling."""
    saved = saved_model(reader)
    specs = {table.name: table for table in reader.store.tables}
    lookups: list[dict[str, Any]] = []
    for lookup in saved.spec.lookups:
        feature = saved.features.sparse[lookup.feature]
        lookups.append(
            {
                "feature": feature.name,
                "column": feature.column,
                "weights": feature.weights,
                "combiner": feature.combiner,
                "max_length": feature.max_length,
                "keep": feature.keep,
                "pad": feature.pad,
                "max_norm": lookup.max_norm,
                "tables": [part.table for part in lookup.physical],
                "operation": lookup.operation if lookup.assembled else None,
                "first": None if lookup.sequence else lookup.column,
                "dim": lookup.dim,
            }
        )
    return {
        "type": saved.spec.type,
        "tasks": list(saved.spec.tasks),
        "dense": list(saved.features.dense),
        "dense_transform": saved.features.dense_transform,
        "lookups": lookups,
        "default_values": {
            name: specs[name].default_value
            for name in dict.fromkeys(t for each in lookups for t in each["tables"])
        },
    }


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


def write_safetensors(directory: Path, table: TableSpec, reader: CheckpointReader) -> int:
    """Write one table, sorted by its keys; return its rows. It is held in memory once."""
    keys, vectors = [np.empty(0, np.int64)], [np.empty((0, table.dim), np.float32)]
    for entries in reader.rows(table):
        keys.append(entries.keys)
        vectors.append(entries.vectors)
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys)
    directory.mkdir(exist_ok=True)
    arrays: dict[str, npt.NDArray[Any]] = {
        "keys": all_keys[order],
        "vectors": np.concatenate(vectors)[order],
    }
    _save_arrays(directory / "rows.safetensors", arrays)
    return int(all_keys.size)


def _save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    from safetensors.numpy import save_file

    # What is not contiguous would be written in another order, without an error.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


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
            if (out / name).is_dir():
                shutil.rmtree(out / name, ignore_errors=True)
            else:
                (out / name).unlink(missing_ok=True)
        names = sorted(path.name for path in staging.iterdir())
        for name in sorted(names, key=lambda name: name == ABOUT_FILE):
            (staging / name).rename(out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def held_export(out: Path, *, overwrite: bool) -> list[str]:
    """Return what the export that is to be replaced has; refuse to touch anything else."""
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is not a folder; name another OUT_DIR")
    held = {path.name for path in out.iterdir() if path.name != STAGING} if out.exists() else set()
    if not held:
        return []
    if not overwrite:
        raise ExportError(f"{out} is not empty; use --overwrite, or name another OUT_DIR")
    try:
        about = json.loads((out / ABOUT_FILE).read_text())
        ours = about["format"] == FORMAT
        tables = [*about["tables"], *about.get("files", ())] if ours else []
    except (OSError, ValueError, KeyError, TypeError):
        tables = []
    foreign = sorted(held - {ABOUT_FILE, *tables})
    if foreign or not tables:
        raise ExportError(
            f"{out} holds {(foreign or sorted(held))[0]!r}, which is not part of an export; it"
            " won't be overwritten, name another OUT_DIR"
        )
    return tables
