"""Make the plan of a job's data: find the files, read their footers, check their columns."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from worker.contract import ColumnKind, check_same_kinds
from worker.data.column_types import column_kinds
from worker.data.data_files import DataFile, file_of_folders, table_name
from worker.data.deleted_rows import pack, rows_kept, without
from worker.data.delta import delta_files
from worker.data.file_columns import named_schema
from worker.data.footers import Footer, open_source, read_footer
from worker.data.iceberg import iceberg_files
from worker.data.patterns import expand
from worker.data.plan import FilePlan, Plan
from worker.errors import DataError, UnreadableError
from worker.spec import DataSpec, FeatureSpec

_log = logging.getLogger(__name__)

_FOOTER_THREADS = 16


def make_plan(patterns: Sequence[str], data: DataSpec, *, keep: Sequence[str] = ()) -> Plan:
    """Plan the files that patterns name. Only their footers are read, several at a time.

    Args:
        patterns: as `find_files` takes them.
        data: features, batch size, lanes, epochs, shuffle; with `on_bad_file` `skip`, files whose
            footers can't be read are left out and logged.
        keep: further columns that will be read; they are not checked.

    Raises:
        StorageError: a pattern names no file, a store or table can't be read.
        DataError: a file can't be read, lacks a column, has one of an unusable type, or of another
            type than the files before it; a file is not the one that its table lists.
    """
    found = find_files(patterns)
    with ThreadPoolExecutor(min(_FOOTER_THREADS, max(1, len(found)))) as threads:
        outcomes = list(threads.map(_read_footer, found))
    names = list(dict.fromkeys([*data.features.columns(), *keep]))
    files, skipped = [], []
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for file, footer in zip(found, outcomes, strict=True):
        if isinstance(footer, UnreadableError):
            if data.on_bad_file == "fail":
                raise footer
            _log.warning("left out: %s", footer)
            skipped.append(file.path)
            continue
        columns = file.columns(footer.schema, names)
        schema = named_schema(footer.schema, columns)
        _check_agreement(schema, data.features, file.path, first)
        rows, kept = _rows_kept(file, footer)
        files.append(FilePlan(file.path, footer.size, rows, footer.digest, columns, kept))
    return Plan(
        files=tuple(files),
        batch_size=data.batch_size,
        lanes=data.lanes,
        epochs=data.epochs,
        shuffle=data.shuffle,
        seed=data.seed,
        skipped_files=tuple(skipped),
        tables=tuple(dict.fromkeys(file.table for file in found if file.table is not None)),
        kinds=_kinds_in(first),
    )


def _kinds_in(first: dict[tuple[str, str], tuple[str, str]]) -> tuple[ColumnKind, ...]:
    return tuple(
        ColumnKind(column, kind.removeprefix("list of "), file)
        for (role, column), (kind, file) in first.items()
        if role == "sparse column"
    )


def plan_arrived(
    path: str,
    features: FeatureSpec,
    kinds: Sequence[ColumnKind],
    first: dict[tuple[str, str], tuple[str, str]],
) -> FilePlan:
    """Plan a file of a stream.

    Args:
        features: the columns that it must have.
        kinds: what sparse columns hold in the first file of the job.
        first: the kind of each column and the first file that has it; is added to where the file
            can be used.

    Raises:
        DataError: it can't be read, lacks a column, or has one of an unusable or another type.
    """
    file = file_of_folders(path)
    footer = _read_footer(file)
    if isinstance(footer, UnreadableError):
        raise footer
    columns = file.columns(footer.schema, features.columns())
    seen = dict(first)
    _check_agreement(named_schema(footer.schema, columns), features, path, seen)
    check_same_kinds(features, _kinds_in(seen), kinds)
    first.update(seen)
    return FilePlan(path, footer.size, footer.row_group_rows, footer.digest, columns)


def plan_of_sample(file: FilePlan, data: DataSpec) -> Plan:
    """Return a plan of one file of a stream: what is known of columns before any is trained."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    plan_arrived(file.path, data.features, (), first)
    return Plan(files=(file,), batch_size=data.batch_size, kinds=_kinds_in(first))


def check_unchanged(plan: Plan) -> None:
    """Hold the files of a plan against what they were when it was made, by size and footer.

    Raises:
        DataError: a file is gone, can't be read, or is another one.
    """
    with ThreadPoolExecutor(min(_FOOTER_THREADS, max(1, len(plan.files)))) as threads:
        for _ in threads.map(_check_file, plan.files):
            pass


def _check_file(planned: FilePlan) -> None:
    try:
        with open_source(planned.path) as source:
            footer = read_footer(source, planned.path)
    except UnreadableError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DataError(
            what="a file that the run was planned with is gone",
            file=planned.path,
            remedy=(
                "A run goes on with the files that it began with: put it back where it was, or"
                " start a new run (another run.dir)"
            ),
        ) from error
    planned.check_unchanged(footer.size, footer.digest)


def find_files(patterns: Sequence[str]) -> list[DataFile]:
    """Return the files that patterns name, in the order of the patterns.

    Args:
        patterns: as `worker.data.patterns.expand` takes them, and tables: `delta://PLACE[@VERSION]`,
            `iceberg://PLACE[@SNAPSHOT]`.

    Raises:
        StorageError: a pattern names no file; a store or a table can't be read.
    """
    found: list[DataFile] = []
    plain: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        table = table_name(pattern)
        if table is None:
            found += map(file_of_folders, expand([pattern], plain))
        else:
            found += delta_files(table) if table.format == "delta" else iceberg_files(table)
    return found


def _read_footer(file: DataFile) -> Footer | UnreadableError:
    try:
        with open_source(file.path) as source:
            footer = read_footer(source, file.path)
    except UnreadableError as error:
        if file.table is None or not isinstance(error.__cause__, FileNotFoundError):
            return error
        raise DataError(
            what="a file of a table is gone",
            file=file.path,
            got=f"{file.table} lists it",
            remedy="Read a newer version: files of old ones are removed when a table is cleaned up",
        ) from error
    for what, listed, held in (
        ("bytes", file.size, footer.size),
        ("rows", file.rows, footer.metadata.num_rows),
    ):
        if listed is not None and listed != held:
            raise DataError(
                what="a file is not the one that its table lists",
                file=file.path,
                got=f"it has {held} {what}, {file.table} says {listed}",
                remedy="Restore the file, or read another version of the table",
            )
    return footer


def _rows_kept(file: DataFile, footer: Footer) -> tuple[tuple[int, ...], str]:
    """The rows of each row group that the table still has, and which these are."""
    if file.deleted is None:
        return footer.row_group_rows, ""
    try:
        kept = without(file.deleted, footer.metadata.num_rows)
    except ValueError as error:
        raise DataError(
            what="the deleted rows of a table are not those of its file",
            file=file.path,
            got=str(error),
            remedy="Repair the table, or read another version of it",
        ) from error
    return rows_kept(kept, footer.row_group_rows), pack(kept)


def _check_agreement(
    schema: pa.Schema,
    features: FeatureSpec,
    path: str,
    first: dict[tuple[str, str], tuple[str, str]],
) -> None:
    """Check a file's columns, and that they hold what those of the files before it hold.

    `first` has the kind of each column and the first file that has it, and is added to.
    """
    for place, kind in column_kinds(schema, features, path).items():
        if kind is None:
            continue
        expected, example = first.setdefault(place, (kind, path))
        if kind != expected:
            role, column = place
            raise DataError(
                what=f"a {role} differs between files",
                file=path,
                column=column,
                got=f"got {kind}, expected {expected} as in {example!r}",
                remedy="Write the files with one type, or leave one of them out",
            )
