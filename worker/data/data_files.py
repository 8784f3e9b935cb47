"""What a job's data can be: files by path, folder and pattern, and tables of Delta and Iceberg."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.storage import StorageError, brief, split_url
from worker.data.file_columns import FileColumn, constant
from worker.data.patterns import folder_values

FileColumns = Callable[[pa.Schema, Sequence[str]], tuple[FileColumn, ...]]

_TABLE = re.compile(r"(delta|iceberg)://(.+?)(?:@([0-9]+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and what is known of it before it is opened.

    Args:
        path: local path or URL.
        columns: gives, for the file's schema and the names that are wanted, those columns that the
            file has by another name or not at all; raises DataError for one that its table lacks.
        names: of the columns that its table has; where no table lists it, those of its folders.
        table: the table that lists the file, with its version; None: no table does.
        size: of the file in bytes, where a table says it.
        rows: of the file, where a table says it.
        deleted: int64, positions of rows that the table no longer has; None: it has all of them.
    """

    path: str
    columns: FileColumns
    names: tuple[str, ...] = ()
    table: str | None = None
    size: int | None = None
    rows: int | None = None
    deleted: npt.NDArray[np.int64] | None = None

    def all_names(self, schema: pa.Schema) -> list[str]:
        """Return the columns that a job may name, for the file's schema."""
        own = () if self.table is not None else schema.names
        return list(dict.fromkeys([*own, *self.names]))


@dataclass(frozen=True, slots=True)
class TableName:
    """A table as a job names it: `FORMAT://PLACE[@VERSION]`.

    Args:
        format: `delta` or `iceberg`.
        place: a path or URL; of Iceberg also CATALOG/NAMESPACE.TABLE.
        version: a version of Delta or a snapshot of Iceberg; None: the newest one.
    """

    format: Literal["delta", "iceberg"]
    place: str
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.format}://{self.place}" + (
            "" if self.version is None else f"@{self.version}"
        )

    @property
    def in_catalog(self) -> bool:
        """Whether a catalog knows where the table is: the place is neither a path nor a URL."""
        return self.format == "iceberg" and not re.match(r"[/.~]|.*://", self.place)

    def error(self, problem: str, remedy: str) -> StorageError:
        """Return the error for a table that can't be read."""
        return StorageError(str(self), problem, remedy)

    @contextmanager
    def refused_where(self, package: str, remedy: str) -> Iterator[None]:
        """Raise StorageError for whatever a package raises."""
        try:
            yield
        except StorageError:
            raise
        except ImportError as error:
            problem = f"it is read by the package {package}, which is not installed here"
            raise self.error(problem, "Install it: pip install 'synchromesh[tables]'") from error
        except BaseException as error:
            # Where Rust code panics, pyo3's exception is none of Exception's.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise self.error(f"the table can't be read ({brief(error)})", remedy) from error

    def located(self, path: str) -> str:
        """Return how a file is opened that the table names by its absolute path or URL."""
        if found := re.match(r"file:/+", path):
            return "/" + path[found.end() :]
        options = split_url(self.place)[3]
        if options and split_url(path)[:2] == split_url(self.place)[:2]:
            return f"{path}?{options}"
        return f"{path}?" if "://" in path and "?" in path else path


def s3_settings(options: str) -> dict[str, str]:
    """Return `region` and `endpoint` of S3 as far as they are said, for packages with own clients.

    Args:
        options: of a URL, as pyarrow takes them; what they don't say comes from the environment.
    """
    given = {key: values[-1] for key, values in parse_qs(options).items()}
    region = given.get("region") or os.environ.get("AWS_REGION")
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        endpoint = endpoint or os.environ.get(name)
    found = {"region": region, "endpoint": endpoint}
    return {key: value for key, value in found.items() if value}


def table_name(pattern: str) -> TableName | None:
    """Return the table that a pattern names; None where it names files."""
    found = _TABLE.fullmatch(pattern)
    if found is None:
        return None
    version = None if found[3] is None else int(found[3])
    return TableName("delta" if found[1] == "delta" else "iceberg", found[2], version)


def file_of_folders(path: str) -> DataFile:
    """Return a file that no table lists; its folders `key=value` say the columns that it lacks."""
    values = folder_values(path)

    def columns(schema: pa.Schema, names: Sequence[str]) -> tuple[FileColumn, ...]:
        return tuple(
            constant(name, values[name], pa.string())
            for name in names
            if name in values and name not in schema.names
        )

    return DataFile(path, columns, tuple(values))
