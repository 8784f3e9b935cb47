"""Parts of a checkpoint's files: which bytes hold which keys, so that a reader takes no others.

    parts-00000-of-00002.arrow   path, first, end, rows, num_bytes, digest

Every shard lists the parts of its files in such a file. A part is one batch of the Arrow file
`path`, the first part with all that comes before it: rows of buckets [first, end), of dense/ the
blocks, of `placed` the records. Of an extent, see `placed`, it is a segment. Parts follow one
another from the start of the file; after the last one is Arrow's footer, without which they can be
read. In a sorted checkpoint they come by ascending buckets, and no two have one in common.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy.typing as npt
import pyarrow as pa

from embedding.arrow import check_no_nulls
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from ps.checkpoint.checksums import (
    DIGEST_BYTES,
    TREE_VERSION,
    new_hasher,
    tree_digest,
)
from ps.checkpoint.errors import CheckpointError
from runtime.places import NoFileError, Place

PARTS = "parts-"
MAX_PARTS_BYTES = 256 << 20
MAX_RECORDS = 1 << 33  # of all extents of a table on a shard
MAX_PART_BYTES = 1 << 31  # read at once; those that are written have 8 MiB, or one Bloom block


def parts_schema(format_version: int) -> pa.Schema:
    """Return the columns of a list of parts."""
    return pa.schema(
        [
            ("path", pa.string()),
            *((name, pa.int64()) for name in ("first", "end", "rows", "num_bytes")),
            ("sha256" if format_version < TREE_VERSION else "digest", pa.binary(DIGEST_BYTES)),
        ]
    )


PARTS_SCHEMA = parts_schema(TREE_VERSION)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint; `path` is relative to the manifest, `digest` in hexadecimal."""

    path: str
    bytes: int
    digest: str
    rows: int


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive bytes of a file, with its rows of buckets (of dense/: of blocks) [first, end)."""

    path: str
    first: int
    end: int
    rows: int
    num_bytes: int
    digest: bytes


class Sink(Protocol):
    """What bytes can be written to."""

    def write(self, data: Any, /) -> object: ...


class HashedFile:
    """Passes writes on, and keeps length and digest of the file, each byte of it hashed once.

    Args:
        file: takes the bytes.
    """

    def __init__(self, file: Sink) -> None:
        self._file = file
        self._hasher = new_hasher(TREE_VERSION)
        self._digests: list[bytes] = []  # of the parts before
        self._part_start = 0
        self.closed = False
        self.length = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._hasher.update(view)
        self.length += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """There is nothing of its own to flush."""

    def hexdigest(self, *, in_parts: bool) -> str:
        """Return the digest of the file, which is written; `in_parts`: its parts are listed."""
        rest = self._hasher.digest()
        return (tree_digest([*self._digests, rest]) if in_parts else rest).hex()

    def end_part(self, path: str, rows: int, within: tuple[int, int]) -> FilePart:
        """Say what was written since the part before ended: a batch of at least one row."""
        length, digest = self.length - self._part_start, self._hasher.digest()
        self._part_start, self._hasher = self.length, new_hasher(TREE_VERSION)
        self._digests.append(digest)
        return FilePart(path, *within, rows, length, digest)


def numbers_of(batch: pa.RecordBatch) -> npt.NDArray[Any]:
    """Return the bucket of each row of a batch, of dense/ its block."""
    column = batch.column(0).to_numpy()
    return buckets_of(column) if batch.schema.names[0] == "key" else column


def parts_table(parts: Iterable[FilePart]) -> pa.Table:
    columns = list(zip(*map(astuple, parts), strict=True)) or [()] * len(PARTS_SCHEMA)
    return pa.table([list(column) for column in columns], schema=PARTS_SCHEMA)


def parts_from(table: pa.Table | pa.RecordBatch) -> list[FilePart]:
    """Return the parts of a table or batch of `PARTS_SCHEMA`."""
    check_no_nulls(table)
    return [FilePart(*row.values()) for row in table.to_pylist()]


def parts_by_file(
    files: Iterable[FileEntry], parts: Iterable[FilePart], *, num_blocks: int, in_order: bool
) -> dict[str, list[FilePart]]:
    """Return the parts of each file, in order.

    Args:
        in_order: whether they must be of ascending buckets, and each bucket in one part only.

    Raises:
        ValueError: they are not all of the files' rows, each once, or can't be where they are said
            to be.
    """
    found: dict[str, list[FilePart]] = defaultdict(list)
    for part in parts:
        found[part.path].append(part)
    entries = {entry.path: entry for entry in files if not entry.path.startswith(PARTS)}
    for path in found:
        if path not in entries:
            raise ValueError(f"parts of {path!r}, which the manifest does not list")
    kinds: dict[str, list[FilePart]] = defaultdict(list)
    for path, entry in entries.items():
        limit = {"blocks": num_blocks, "buckets": NUM_BUCKETS, "records": MAX_RECORDS}[_unit(path)]
        _check_parts(entry, found[path], limit, in_order=in_order)
        kinds[path.rsplit("-", 3)[0]] += found[path]
    for of_kind in kinds.values() if in_order else ():
        of_kind.sort(key=lambda part: part.first)
        for before, after in itertools.pairwise(of_kind):
            if after.first < before.end:
                raise ValueError(
                    f"{_described(before)} of {before.path} and {_described(after)} of"
                    f" {after.path}: each may be in one part only"
                )
    return dict(found)


def _check_parts(entry: FileEntry, parts: list[FilePart], limit: int, *, in_order: bool) -> None:
    end = 0
    for part in parts:
        if not (end <= part.first < part.end <= limit):
            order = f"follow {end}: parts must be of ascending" if in_order else "be: it has"
            raise ValueError(
                f"{_described(part)} of {entry.path} can't {order} {_unit(entry.path)}, of {limit}"
                " at most"
            )
        if part.rows < 1 or not 1 <= part.num_bytes <= MAX_PART_BYTES:
            raise ValueError(f"{part.rows} rows in {part.num_bytes} bytes of {entry.path}")
        end = part.end if in_order else 0
    rows = sum(part.rows for part in parts)
    if rows != entry.rows:
        raise ValueError(f"parts of {entry.path} with {rows} rows, the manifest has {entry.rows}")
    if sum(part.num_bytes for part in parts) > entry.bytes:
        raise ValueError(f"parts of {entry.path} that are longer than its {entry.bytes} bytes")


def _unit(path: str) -> str:
    if path.startswith("dense/"):
        return "blocks"
    return "records" if path.rpartition("/")[2].startswith("placed-") else "buckets"


def _described(part: FilePart) -> str:
    return f"{_unit(part.path)} [{part.first}, {part.end})"


def damaged_part(path: Place, offset: int, part: FilePart) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: bytes {offset} to {offset + part.num_bytes} do not have the checksum"
        f" of {_described(part)}"
    )


def check_schema(path: Place, found: pa.Schema, wanted: pa.Schema) -> None:
    """Raise CheckpointError unless a file has the columns of its table."""
    if not found.equals(wanted):
        has, needs = (", ".join(f"{f.name} {f.type}" for f in s) for s in (found, wanted))
        raise CheckpointError(f"{path} has columns {has}; its table needs {needs}")


def check_part(part: FilePart, rows: int, lowest: int, highest: int) -> None:
    """Raise ValueError unless a part has the rows that its list says.

    Args:
        rows: that were found.
        lowest, highest: bucket or block of them.
    """
    if rows != part.rows or lowest < part.first or highest >= part.end:
        raise ValueError(
            f"the list of parts says {part.rows} rows of {_described(part)}, the file has {rows}"
            f" there, of {_unit(part.path)} {lowest} to {highest}"
        )


@contextlib.contextmanager
def naming(path: Place) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except CheckpointError:
        raise
    except NoFileError as error:
        raise CheckpointError(str(error)) from error
    except pa.ArrowException as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
