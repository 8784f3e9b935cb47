"""Rows from elsewhere: a Parquet file of keys and vectors becomes rows of a table."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding import TableEntries, TableSpec, rule_for
from ps.checkpoint.compact import compact
from ps.checkpoint.read import CheckpointReader
from runtime.places import Place, place_of
from scheduler.job.errors import nearest
from synchromesh.checkpoints import open_checkpoint
from synchromesh.outputs import check_place
from worker.data.column_types import is_list, is_number
from worker.data.key_hash import KEY_TYPES, NotAKeyError, key_kind, keys_of
from worker.inference import saved_model
from worker.spec_json import SavedModel


class ImportedRowsError(ValueError):
    """A file holds no rows of a table; the message says which, and what it must hold."""


def import_rows(
    path: str | Place, files: Mapping[str, str | Path], out: str | Place
) -> tuple[Place, str, dict[str, int]]:
    """Write a checkpoint whose tables have rows of files beside their own.

    Args:
        path: a checkpoint, or a run, whose newest is taken.
        files: by table, Parquet with the columns `key` and `vector`. A row takes the place of the
            one that has its key. Its slots begin as those of a new row.
        out: the new folder; where the name is taken it gets a number.

    Returns:
        Its folder, the model's digest, and how many rows each file had.

    Raises:
        ImportedRowsError: a table is not there, or a file does not fit it.
        CheckpointError, RunDirectoryError: there is no checkpoint, or it is damaged.
        OutputError: nothing can be written at the place.
        OSError: a file can't be read, or the checkpoint not be written; nothing is left of it.
    """
    found = open_checkpoint(path)
    reader = CheckpointReader(found.path)
    saved = saved_model(reader)
    tables = {table.name: table for table in reader.store.tables}
    rows = {}
    for name, file in files.items():
        if name not in tables:
            raise ImportedRowsError(
                f"the checkpoint has no table {name!r}{nearest(name, list(tables))}"
            )
        kinds = _kinds_of(saved, name)
        rows[name] = _read(Path(file), tables[name], kinds, step=found.step)
    place = place_of(out)
    if isinstance(place, Path):
        check_place(place)
    written, digest = compact(reader, place, rows)
    return written, digest, {name: len(each.keys) for name, each in rows.items()}


def _kinds_of(saved: SavedModel, table: str) -> dict[str, str]:
    """Return what a table's keys are, by feature."""
    features = [
        saved.features.sparse[lookup.feature].name
        for lookup in saved.spec.lookups
        if lookup.table == table and not lookup.parts
    ]
    if not features:
        raise ImportedRowsError(
            f"table {table!r} is a part of a composition, whose keys are not those of the data;"
            " import rows into tables that a feature reads as they are"
        )
    keys = {} if saved.contract is None else saved.contract.keys
    return {name: keys[name] for name in features if name in keys}


def _read(file: Path, spec: TableSpec, kinds: Mapping[str, str], *, step: int) -> TableEntries:
    if spec.value_dtype != "float32":
        raise ImportedRowsError(
            f"table {spec.name!r} keeps {spec.value_dtype}; import into one of float32, and give"
            " the job that begins with it the other value_dtype"
        )
    try:
        table = pq.read_table(file)
    except pa.ArrowException as error:
        raise ImportedRowsError(f"{file} is no Parquet file that can be read: {error}") from error
    for name in ("key", "vector"):
        if name not in table.column_names:
            has = ", ".join(table.column_names)
            raise ImportedRowsError(f"{file} has no column {name!r}; its columns are {has}")
    keys = _keys(file, table["key"].combine_chunks(), kinds)
    vectors = _vectors(file, table["vector"].combine_chunks(), spec)
    slots = rule_for(spec.optimizer, sparse=True).initial_slots(spec.dim)
    count = len(keys)
    return TableEntries(
        keys=keys,
        frequency=np.zeros(count, np.int64),
        version=np.full(count, step if spec.track_usage else 0, np.int64),
        vectors=vectors,
        slots=np.ascontiguousarray(np.broadcast_to(slots, (count, slots.size))),
    )


def _keys(file: Path, column: pa.Array, kinds: Mapping[str, str]) -> npt.NDArray[np.int64]:
    try:
        kind = None if is_list(column.type) else key_kind(column.type)
    except TypeError:
        kind = None
    if kind is None:
        raise ImportedRowsError(
            f"{file}: column 'key' is {column.type}, and keys are {KEY_TYPES}, one a row"
        )
    for feature, expected in kinds.items():
        if kind != expected:
            raise ImportedRowsError(
                f"{file}: column 'key' holds {kind}, and feature {feature!r} of the checkpoint"
                f" {expected}: equal values of two types are different keys. Write the keys as the"
                " training data have them"
            )
    try:
        keys, valid = keys_of(column)
    except NotAKeyError as error:
        raise ImportedRowsError(
            f"{file}: column 'key', row {error.position}: got {error.value}, expected"
            f" {error.expected}"
        ) from error
    if valid is not None and not valid.all():
        raise ImportedRowsError(f"{file}: column 'key', row {int(np.argmin(valid))}, is null")
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        first, second = np.flatnonzero(keys == twice[0])[:2].tolist()
        raise ImportedRowsError(f"{file}: rows {first} and {second} have the same key")
    return keys


def _vectors(file: Path, column: pa.Array, spec: TableSpec) -> npt.NDArray[np.float32]:
    kind = column.type
    if not is_list(kind) or not is_number(kind.value_type):
        raise ImportedRowsError(f"{file}: column 'vector' is {kind}, expected lists of numbers")
    if column.null_count:
        row = int(np.argmin(column.is_valid().to_numpy(zero_copy_only=False)))
        raise ImportedRowsError(f"{file}: column 'vector', row {row}, is null")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != spec.dim)
    if wrong.size:
        row = int(wrong[0])
        raise ImportedRowsError(
            f"{file}: column 'vector', row {row}, has {lengths[row]} values, and table"
            f" {spec.name!r} dim {spec.dim}"
        )
    values = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    vectors = np.array(values, np.float32).reshape(-1, spec.dim)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ImportedRowsError(f"{file}: column 'vector', row {row}, is not finite")
    return vectors
