"""Delta tables: the files of a version, as the package `deltalake` lists them."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.storage import join_url, split_url
from worker.data.data_files import DataFile, TableName, s3_settings
from worker.data.table_columns import TableColumn, TableSchema, by_field_id, by_name

# Those that are honoured below, or change nothing for a reader of rows.
_FEATURES = {
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "variantType",
    "variantType-preview",
}


def delta_files(name: TableName) -> list[DataFile]:
    """Return the files of a Delta table in the order in which `deltalake` lists them.

    Raises:
        StorageError: the package is missing, there is no such table or version, or its rows can't
            be told from its files alone.
    """
    scheme, authority, path, options = split_url(name.place)
    if unquote(path) != path:  # another folder would be read, or none
        remedy = "Rename the folder, or write the table to another one"
        raise name.error("deltalake takes a percent escape for another character", remedy)
    place = f"{scheme}://{authority}{path}" if scheme else os.path.abspath(os.path.expanduser(path))
    with name.refused_where("deltalake", "Check the path, the version and the rights to it"):
        from deltalake import DeltaTable

        table = DeltaTable(place, name.version, _storage_options(options))
        features = set(table.protocol().reader_features or ())
        mode = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        schema = pa.schema(table.schema())
        actions = pa.table(table.get_add_actions())
        masks = pa.table(table.deletion_vectors()) if "deletionVectors" in features else None
        uri, version = table.table_uri, table.version()
    if unknown := features - _FEATURES:
        problem = f"the table needs what is not known here: {', '.join(sorted(unknown))}"
        raise name.error(problem, "Write the table anew without it")
    deleted = {} if masks is None else _deleted(masks)
    root = name.place if scheme else place
    named = str(TableName("delta", root, version))
    columns = TableSchema(named, {field.name: _column(field, mode) for field in schema})
    values: Sequence[Mapping[str, Any]] = [{}] * actions.num_rows
    if "partition" in actions.column_names:
        values = actions.column("partition").to_pylist()
    listed = actions.select(["path", "size_bytes", "num_records"]).to_pylist()
    files = []
    for action, partition in zip(listed, values, strict=True):
        relative = unquote(action["path"])
        absolute = re.match(r"/|[a-z][a-z0-9]*:/", relative)
        file = name.located(relative) if absolute else join_url(root, relative)
        written = action["path"] if absolute else f"{uri.rstrip('/')}/{action['path']}"
        files.append(
            DataFile(
                file,
                partial(columns.in_file, file, values=partition),
                tuple(columns.columns),
                table=named,
                size=action["size_bytes"],
                rows=action["num_records"],
                deleted=deleted.pop(written, None),
            )
        )
    if deleted:  # rather than that their rows are read
        problem = (
            f"deletion vectors are of files that it doesn't list: {', '.join(sorted(deleted))}"
        )
        raise name.error(problem, "Rewrite its files: REORG TABLE ... APPLY (PURGE) in Spark")
    return files


def _deleted(masks: pa.Table) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of deleted rows by the URIs of their files."""
    columns = (masks.column(name) for name in ("filepath", "selection_vector"))
    return {
        path.as_py(): np.flatnonzero(~mask.values.to_numpy(zero_copy_only=False))
        for path, mask in zip(*columns, strict=True)
    }


def _column(field: pa.Field, mode: str) -> TableColumn:
    mapping = field.metadata or {}
    if mode == "id":
        return TableColumn(field.type, by_field_id(int(mapping[b"delta.columnMapping.id"])))
    if mode == "name":
        own = mapping[b"delta.columnMapping.physicalName"].decode()
        return TableColumn(field.type, by_name(own))
    return TableColumn(field.type, by_name(field.name))


def _storage_options(options: str) -> dict[str, str]:
    names = {"region": "AWS_REGION", "endpoint": "AWS_ENDPOINT_URL"}
    found = {names[key]: value for key, value in s3_settings(options).items()}
    if found.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        found["AWS_ALLOW_HTTP"] = "true"
    return found
