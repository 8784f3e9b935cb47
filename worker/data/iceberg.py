"""Iceberg tables: the files of a snapshot, as the package `pyiceberg` lists them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from runtime.storage import join_url, open_filesystem, split_url
from worker.data.data_files import DataFile, TableName, s3_settings
from worker.data.footers import open_source
from worker.data.table_columns import TableColumn, TableSchema, by_field_id

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile as ListedFile
    from pyiceberg.table import DataScan, FileScanTask, Table

_METADATA = ".metadata.json"
_REWRITE = "Rewrite its files: CALL ...rewrite_data_files(...) in Spark"


def iceberg_files(name: TableName) -> list[DataFile]:
    """Return the files of an Iceberg table in the order in which its manifests list them.

    Raises:
        StorageError: the package is missing, there is no such table or snapshot, or its rows can't
            be told from its files alone.
    """
    with name.refused_where("pyiceberg", "Check the name, the snapshot and the rights to it"):
        table, place = _opened(name)
        snapshot = table.current_snapshot()
        if name.version is not None:
            snapshot = table.snapshot_by_id(name.version)
            if snapshot is None:
                known = ", ".join(str(s.snapshot_id) for s in table.snapshots()[-5:])
                raise name.error("the table has no such snapshot", f"Its newest are {known}")
        if snapshot is None:
            return []  # nothing was ever written
        scan = table.scan(snapshot_id=name.version)
        tasks = _tasks(name, scan)
        columns = _columns(TableName("iceberg", place, snapshot.snapshot_id), table, scan)
        others = sorted({t.file.file_format.value for t in tasks} - {"PARQUET"})
        deleted = _deleted(name, table, tasks)
        values = partial(_partition_values, table, scan)
        files = [_file(name, columns, t.file, deleted, values(t.file)) for t in tasks]
    if others:
        problem = f"it has files of the format {', '.join(others)}"
        raise name.error(problem, "Only Parquet files are read: rewrite the table's files")
    return files


def _tasks(name: TableName, scan: "DataScan") -> list["FileScanTask"]:
    try:
        return list(scan.plan_files())
    except (ValueError, NotImplementedError) as error:
        if "equality deletes" not in str(error):
            raise
        raise name.error("it has equality deletes, which can't be read", _REWRITE) from error


def _opened(name: TableName) -> tuple["Table", str]:
    """The table, and its place as the plan keeps it."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.table import StaticTable

    if name.in_catalog:
        catalog, _, identifier = name.place.partition("/")
        return load_catalog(catalog).load_table(identifier), name.place
    scheme, _, path, options = split_url(name.place)
    place = name.place if scheme else os.path.abspath(os.path.expanduser(path))
    metadata = place if path.endswith(_METADATA) else _newest_metadata(name, place)
    settings = {f"s3.{key}": value for key, value in s3_settings(options).items()}
    bare = metadata.partition("?")[0] if scheme else metadata
    return StaticTable.from_metadata(bare, settings), place


def _newest_metadata(name: TableName, place: str) -> str:
    """The metadata file of a table's folder with the highest number, or the one of its hint."""
    folder = join_url(place, "metadata")
    filesystem, inner = open_filesystem(folder)
    hint = f"{inner}/version-hint.text"
    if filesystem.get_file_info(hint).type == pafs.FileType.File:
        with filesystem.open_input_file(hint) as source:
            said = source.read(1000).decode().strip()
        said = f"v{said}" if said.isdecimal() else said.removesuffix(_METADATA)
        return join_url(folder, said + _METADATA)
    entries = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    names = [entry.base_name for entry in entries if entry.base_name.endswith(_METADATA)]
    numbers = {own: int(found[1]) for own in names if (found := re.match(r"v?([0-9]+)", own))}
    newest = [own for own in numbers if numbers[own] == max(numbers.values())]
    if len(newest) != 1:
        problem = (
            f"two metadata files are the newest: {', '.join(sorted(newest))}"
            if newest
            else "the folder has no metadata of an Iceberg table"
        )
        raise name.error(problem, "Name the metadata file, or the table by its catalog")
    return join_url(folder, newest[0])


def _columns(named: TableName, table: "Table", scan: "DataScan") -> TableSchema:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    mapping = table.name_mapping()
    names = None if mapping is None else {m.field_id: tuple(m.names) for m in mapping}
    columns = {
        field.name: TableColumn(
            type=schema_to_pyarrow(field.field_type),
            find=by_field_id(
                field.field_id, None if names is None else names.get(field.field_id, ())
            ),
            default=field.initial_default,
        )
        for field in scan.projection().fields
    }
    return TableSchema(str(named), columns)


def _file(
    name: TableName,
    columns: TableSchema,
    file: "ListedFile",
    deleted: Mapping[str, npt.NDArray[np.int64]],
    values: Mapping[str, Any],
) -> DataFile:
    path = name.located(file.file_path)
    return DataFile(
        path,
        partial(columns.in_file, path, missing=values),
        tuple(columns.columns),
        table=columns.table,
        size=file.file_size_in_bytes,
        rows=file.record_count,
        deleted=deleted.get(file.file_path),
    )


def _deleted(
    name: TableName, table: "Table", tasks: Sequence["FileScanTask"]
) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of deleted rows by the paths of their files, as the table writes them."""
    files: dict[str, ListedFile] = {}
    listed: dict[str, set[str]] = {}  # a delete file counts for what it is listed with
    for task in tasks:
        for file in task.delete_files:
            files[file.file_path] = file
            listed.setdefault(file.file_path, set()).add(task.file.file_path)
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for own, file in files.items():
        for path, positions in _positions(name, table, file):
            if path in listed[own]:
                found.setdefault(path, []).append(positions)
    return {path: np.unique(np.concatenate(positions)) for path, positions in found.items()}


def _positions(
    name: TableName, table: "Table", file: "ListedFile"
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Each data file's path and the positions that a delete file deletes of it."""
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    kind = file.file_format.value
    if kind == "PUFFIN":
        with table.io.new_input(file.file_path).open() as source:
            content = PuffinFile(source.read())
        for vector in deletion_vectors_from_puffin_file(content):
            yield vector.referenced_data_file, vector.to_vector().to_numpy().astype(np.int64)
        return
    if kind != "PARQUET":
        problem = f"it has delete files of the format {kind}"
        raise name.error(problem, _REWRITE)
    with open_source(name.located(file.file_path)) as source:
        rows = pq.read_table(source, columns=["file_path", "pos"])
    paths = rows.column("file_path").combine_chunks().dictionary_encode()
    numbers = paths.indices.to_numpy()
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(len(paths.dictionary)))
    positions = np.split(rows.column("pos").to_numpy()[order], starts[1:])
    yield from zip(paths.dictionary.to_pylist(), positions, strict=False)


def _partition_values(table: "Table", scan: "DataScan", file: "ListedFile") -> dict[str, Any]:
    """Values that a table keeps by its partitions: those of files that were added to it as such."""
    from pyiceberg.transforms import IdentityTransform

    spec, schema = table.specs()[file.spec_id], scan.projection()
    return {
        schema.find_column_name(field.source_id) or "": file.partition[at]
        for at, field in enumerate(spec.fields)
        if isinstance(field.transform, IdentityTransform)
    }
