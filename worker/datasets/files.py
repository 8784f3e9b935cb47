"""A data set on disk: Parquet parts of bounded memory, published whole or not at all."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

ABOUT_FILE = "about.json"
# What a data set may hold; anything else in its directory is somebody else's.
_OWN_NAMES = frozenset({"train", "valid", "test", ABOUT_FILE})
_STAGING = ".partial"


class DatasetError(ValueError):
    """Input that can't become a data set, or a place where none may be written."""


@contextmanager
def staged(out: Path, *, overwrite: bool, need_bytes: int = 0) -> Iterator[Path]:
    """Give a directory to write to, whose content moves to `out` when the block succeeds.

    The staging directory lies inside `out`, so that both are on one file system. If the block
    raises, it is removed and `out` holds what it held before. What an earlier, killed run has
    staged is removed at the start. `about.json` goes first and comes last: a data set with one
    is complete.

    Args:
        out: directory of the data set, made where missing.
        overwrite: replace a data set that is there.
        need_bytes: rough size of what will be written.

    Raises:
        DatasetError: `out` is no directory, is not empty (with `overwrite`: holds anything that
            is not part of a data set), or its file system has too little room.
    """
    _check_place(out, overwrite=overwrite, need_bytes=need_bytes)
    existed = out.exists()
    staging = out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        _publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def _check_place(out: Path, *, overwrite: bool, need_bytes: int) -> None:
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is not a directory; name another one with --out")
    held = sorted(p.name for p in out.iterdir() if p.name != _STAGING) if out.exists() else []
    if held and not overwrite:
        raise DatasetError(f"{out} is not empty; use --overwrite, or name another one with --out")
    foreign = [name for name in held if name not in _OWN_NAMES]
    if foreign:
        raise DatasetError(
            f"{out} holds {foreign[0]!r}, which is not part of a data set; it won't be "
            "overwritten, name another directory with --out"
        )
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free < need_bytes:
        raise DatasetError(
            f"the data need about {need_bytes / 1e6:.0f} MB, but {nearest} has {free / 1e6:.0f} MB "
            "free; write fewer rows, or name another place with --out"
        )


def _publish(staging: Path, out: Path) -> None:
    names = sorted((p.name for p in staging.iterdir()), key=lambda name: (name == ABOUT_FILE, name))
    (out / ABOUT_FILE).unlink(missing_ok=True)
    for name in _OWN_NAMES:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in names:
        (staging / name).rename(out / name)


class PartWriter:
    """Writes tables of any size as `part-00000.parquet`, `part-00001.parquet`, ...

    Holds less than one row group. A context manager: on leaving, the last part gets its footer; a
    writer that was given no row leaves one part without rows, so that the schema is known.

    Args:
        directory: made where missing.
        schema: of all tables.
        row_group_rows: rows of each row group but a part's last one.
        part_rows: rows of each part in turn, each at least 1; the last part takes what comes
            beyond them.
    """

    def __init__(
        self, directory: Path, schema: pa.Schema, *, row_group_rows: int, part_rows: Iterable[int]
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._schema = directory, schema
        self._row_group_rows = row_group_rows
        self._part_rows = iter(part_rows)
        self._num_parts = 0
        self._part: pq.ParquetWriter | None = None
        self._room = 0  # rows that the open part still takes, counting those pending
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is None and self._num_parts == 0:
            self._open_part()
        self._close_part(flush=kind is None)

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table; full row groups are written at once."""
        while table.num_rows:
            if self._part is None:
                self._open_part()
            take = min(table.num_rows, self._row_group_rows - self._pending_rows, self._room)
            self._pending.append(table.slice(0, take))
            self._pending_rows += take
            self._room -= take
            table = table.slice(take)
            if self._room == 0:
                self._close_part(flush=True)
            elif self._pending_rows == self._row_group_rows:
                self._flush()

    def _open_part(self) -> None:
        path = self._directory / f"part-{self._num_parts:05}.parquet"
        self._num_parts += 1
        self._room = next(self._part_rows, 1 << 62)
        self._part = pq.ParquetWriter(path, self._schema, compression="zstd")

    def _flush(self) -> None:
        if self._pending:
            assert self._part is not None
            table = pa.concat_tables(self._pending)
            self._part.write_table(table, row_group_size=table.num_rows)
        self._pending, self._pending_rows = [], 0

    def _close_part(self, *, flush: bool) -> None:
        if self._part is None:
            return
        try:
            if flush:
                self._flush()
        finally:
            self._part.close()
            self._part = None
