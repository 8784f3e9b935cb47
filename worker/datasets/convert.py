"""Public data sets to Parquet: Criteo's tab-separated logs and MovieLens.

Both are published whole or not at all (`worker.datasets.files.staged`); a line that can't be read
is an error that names the file and the line.
"""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numba import njit

from worker.datasets.files import DatasetError, PartWriter, staged

Json = dict[str, Any]

_LABEL = "label"
_CRITEO_DENSE = [f"I{j}" for j in range(1, 14)]
_CRITEO_SPARSE = [f"C{c}" for c in range(1, 27)]
_CRITEO_SCHEMA = pa.schema(
    [(_LABEL, pa.float32())]
    + [(name, pa.float32()) for name in _CRITEO_DENSE]
    + [(name, pa.int64()) for name in _CRITEO_SPARSE]
)
_COUNT_BLOCK_BYTES = 1 << 23

_GENRES = pa.list_(pa.string())
_NO_GENRES = "(no genres listed)"
_LIKED = 4.0  # from this rating on, the label is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How rows are cut into Parquet files, and whether a data set that is there is replaced."""

    row_group_rows: int = 1 << 16
    rows_per_file: int = 1 << 22
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("row_group_rows", "rows_per_file"):
            if getattr(self, name) < 1:
                raise DatasetError(f"{name} must be >= 1, got {getattr(self, name)}")


def convert_criteo(
    inputs: Sequence[Path],
    out: Path,
    *,
    test_fraction: float | None = 0.1,
    layout: Layout | None = None,
) -> Json:
    """Convert Criteo's tab-separated files (Kaggle `train.txt`, 1 TB `day_N`, also gzipped).

    A line is a label, 13 integers and 26 hexadecimal strings, any of the latter two may be empty.
    Columns become `label` float32, `I1..I13` float32, `C1..C26` int64 (the value of the string as
    64 bits); empty becomes null. Files are streamed, and first read once to count lines where
    there is a split.

    Args:
        inputs: read in this order; compression is known by the file's ending.
        out: directory; `train/` and `test/` go there.
        test_fraction: the last of all rows, in file order, that go to `test/`; in (0, 1). None:
            all rows go to `train/`.

    Returns:
        Rows by split.

    Raises:
        DatasetError: a file or line that can't be read, or a bad argument; `out` is as it was.
    """
    layout = layout or Layout()
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise DatasetError(f"the test fraction must be in (0, 1), got {test_fraction}")
    for path in inputs:
        _require_file(path)
    need_bytes = sum(path.stat().st_size for path in inputs) // 2
    with staged(out, overwrite=layout.overwrite, need_bytes=need_bytes) as staging:
        splits = [("train", sys.maxsize)]
        if test_fraction is not None:
            total = sum(_count_lines(path) for path in inputs)
            test_rows = round(total * test_fraction)
            splits = [("train", total - test_rows), ("test", test_rows)]
        tables = itertools.chain.from_iterable(_criteo_tables(path) for path in inputs)
        return _write_splits(staging, tables, splits, _CRITEO_SCHEMA, layout)


def convert_movielens(input_dir: Path, out: Path, *, layout: Layout | None = None) -> Json:
    """Convert MovieLens: `ml-1m` (`.dat` files) or `ml-latest` (`.csv` files).

    Columns: `label` float32 (1 from a rating of 4 on), `user_id` and `movie_id` int64, `genres`
    list<string>, `rating` float32, `timestamp` int64 (seconds; never a feature, nor is the
    rating); for ml-1m also `gender` string, `age` int64 (start of a bracket), `occupation` int64,
    `zip` string. Sorted by time, ties in file order; the first 80 % of the rows become `train/`,
    10 % `valid/`, 10 % `test/`. The ratings are held in memory, about 100 bytes each.

    Returns:
        Rows by split.

    Raises:
        DatasetError: a file is missing or a line can't be read; `out` is as it was.
    """
    layout = layout or Layout()
    ratings, movies, users = _read_movielens(input_dir)
    n = ratings.num_rows
    if n == 0:
        raise DatasetError(f"{input_dir} holds no ratings")
    splits = [("train", n * 8 // 10), ("valid", n * 9 // 10 - n * 8 // 10), ("test", n)]
    order = np.argsort(ratings["timestamp"].to_numpy(), kind="stable")
    parts = (
        _movielens_table(ratings.take(order[i : i + layout.row_group_rows]), movies, users)
        for i in range(0, n, layout.row_group_rows)
    )
    first = next(parts)
    with staged(out, overwrite=layout.overwrite, need_bytes=32 * n) as staging:
        return _write_splits(staging, itertools.chain([first], parts), splits, first.schema, layout)


def _write_splits(
    staging: Path,
    tables: Iterable[pa.Table],
    splits: Sequence[tuple[str, int]],
    schema: pa.Schema,
    layout: Layout,
) -> Json:
    """Write the tables' rows to the splits in turn, each up to its number of rows."""
    tables = iter(tables)
    table = next(tables, None)
    written: Json = {}
    for name, rows in splits:
        part_rows = itertools.repeat(layout.rows_per_file)
        written[name] = 0
        with PartWriter(
            staging / name, schema, row_group_rows=layout.row_group_rows, part_rows=part_rows
        ) as writer:
            while table is not None and written[name] < rows:
                head = table.slice(0, rows - written[name])
                writer.write(head)
                written[name] += head.num_rows
                rest = table.slice(head.num_rows)
                table = rest if rest.num_rows else next(tables, None)
    if table is not None:
        raise DatasetError("the input has more rows than line ends; were its files written to?")
    return written


# Criteo


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    try:
        with pa.input_stream(str(path)) as stream:
            while block := stream.read(_COUNT_BLOCK_BYTES):
                lines += block.count(b"\n")
                last = block[-1:]
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    return lines + (last != b"\n")


def _criteo_tables(path: Path) -> Iterator[pa.Table]:
    names = _CRITEO_SCHEMA.names
    integers = [_LABEL, *_CRITEO_DENSE]
    types = {name: pa.int64() if name in integers else pa.binary() for name in names}
    row = 0
    try:
        batches = pa.csv.open_csv(
            str(path),
            pa.csv.ReadOptions(use_threads=False, column_names=names),
            _plain_lines("\t"),
            pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
        )
        for batch in batches:
            yield _criteo_table(batch, path, row)
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(path, error, names) from error


def _criteo_table(batch: pa.RecordBatch, path: Path, first_row: int) -> pa.Table:
    labels = batch.column(_LABEL).fill_null(-1).to_numpy()
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if bad.size:
        value = batch.column(_LABEL)[int(bad[0])].as_py()
        raise DatasetError(
            f"{path}, line {first_row + bad[0] + 1}, column {_LABEL}: must be 0 or 1, got "
            f"{'nothing' if value is None else value}"
        )
    columns = [pa.array(labels.astype(np.float32))]
    columns += [batch.column(name).cast(pa.float32(), safe=False) for name in _CRITEO_DENSE]
    for name in _CRITEO_SPARSE:
        values, bad_row = _from_hex(batch.column(name))
        if bad_row >= 0:
            text = batch.column(name)[bad_row].as_py()
            raise DatasetError(
                f"{path}, line {first_row + bad_row + 1}, column {name}: must be 1 to 16 "
                f"hexadecimal digits or empty, got {text!r}"
            )
        columns.append(values)
    return pa.Table.from_arrays(columns, schema=_CRITEO_SCHEMA)


def _from_hex(texts: pa.BinaryArray) -> tuple[pa.Array, int]:
    """Return int64[n] with the nulls of `texts`, and the first row that is not hex, or -1."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    digits = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    nulls = texts.is_null().to_numpy(zero_copy_only=False)
    values = np.zeros(len(texts), np.int64)
    bad_row = _parse_hex(digits, bounds, nulls, values)
    return pa.array(values, mask=nulls), int(bad_row)


@njit(cache=True, nogil=True)
def _parse_hex(
    digits: npt.NDArray[np.uint8],
    bounds: npt.NDArray[np.int32],
    nulls: npt.NDArray[np.bool_],
    out: npt.NDArray[np.int64],
) -> int:
    """Parse text i = digits[bounds[i]:bounds[i + 1]]; stop at a bad one and return its number."""
    for i in range(nulls.size):
        if nulls[i]:
            continue
        if not 1 <= bounds[i + 1] - bounds[i] <= 16:
            return i
        value = np.uint64(0)
        for j in range(bounds[i], bounds[i + 1]):
            c = digits[j]
            if 48 <= c <= 57:  # 0-9
                digit = c - 48
            elif 97 <= c <= 102:  # a-f
                digit = c - 87
            elif 65 <= c <= 70:  # A-F
                digit = c - 55
            else:
                return i
            value = (value << np.uint64(4)) | np.uint64(digit)
        out[i] = np.int64(value)
    return -1


# MovieLens


def _read_movielens(input_dir: Path) -> tuple[pa.Table, pa.Table, pa.Table | None]:
    """Return ratings, movies (`genres` as lists) and, for ml-1m, users."""
    integer, text = pa.int64(), pa.string()
    rating = {"user_id": integer, "movie_id": integer, "rating": pa.float32(), "timestamp": integer}
    movie = {"movie_id": integer, "title": text, "genres": text}
    user = {"user_id": integer, "gender": text, "age": integer, "occupation": integer, "zip": text}
    if (input_dir / "ratings.dat").is_file():
        return (
            _read_dat(input_dir / "ratings.dat", rating),
            _with_genre_lists(_read_dat(input_dir / "movies.dat", movie)),
            _read_dat(input_dir / "users.dat", user),
        )
    if (input_dir / "ratings.csv").is_file():
        return (
            _read_csv(input_dir / "ratings.csv", rating),
            _with_genre_lists(_read_csv(input_dir / "movies.csv", movie)),
            None,
        )
    raise DatasetError(
        f"{input_dir} holds neither ratings.dat (ml-1m) nor ratings.csv (ml-latest); name the "
        "directory that the archive unpacks to"
    )


def _read_dat(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    _require_file(path)
    # Arrow's reader takes one character as separator: the one that ASCII has for this.
    content = path.read_bytes().decode("latin-1").replace("::", "\x1f").encode()
    return _read_table(path, pa.BufferReader(content), types, _plain_lines("\x1f"), header=False)


def _read_csv(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    _require_file(path)
    return _read_table(path, str(path), types, pa.csv.ParseOptions(), header=True)


def _read_table(
    path: Path,
    source: Any,
    types: dict[str, pa.DataType],
    lines: pa.csv.ParseOptions,
    *,
    header: bool,
) -> pa.Table:
    names = list(types)
    try:
        table = pa.csv.read_csv(
            source,
            pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=int(header)),
            lines,
            pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
        )
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(path, error, names) from error
    for name in names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            line = row + 1 + header
            raise DatasetError(f"{path}, line {line}, column {name}: must not be empty")
    return table


def _with_genre_lists(movies: pa.Table) -> pa.Table:
    texts = movies["genres"].to_pylist()
    lists = [[] if text == _NO_GENRES else text.split("|") for text in texts]
    return pa.table({"movie_id": movies["movie_id"], "genres": pa.array(lists, _GENRES)})


def _movielens_table(ratings: pa.Table, movies: pa.Table, users: pa.Table | None) -> pa.Table:
    """Return ratings in the order given, with label, genres and what is known of the user."""
    liked = pc.greater_equal(ratings["rating"], _LIKED)
    columns = {
        "label": liked.cast(pa.float32()),
        "user_id": ratings["user_id"],
        "movie_id": ratings["movie_id"],
        "genres": movies["genres"].take(_positions(ratings, movies, "movie_id")),
        "rating": ratings["rating"],
        "timestamp": ratings["timestamp"],
    }
    if users is not None:
        positions = _positions(ratings, users, "user_id")
        for name in ("gender", "age", "occupation", "zip"):
            columns[name] = users[name].take(positions)
    return pa.table(columns)


def _positions(ratings: pa.Table, table: pa.Table, key: str) -> pa.Array:
    positions = pc.index_in(ratings[key], table[key]).combine_chunks()
    if positions.null_count:
        row = int(np.argmax(positions.is_null().to_numpy(zero_copy_only=False)))
        what = key.removesuffix("_id")
        raise DatasetError(f"a rating names {what} {ratings[key][row]}, which no {what}s file has")
    return positions


# Reading lines


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DatasetError(f"{path} is not a file")


def _plain_lines(delimiter: str) -> pa.csv.ParseOptions:
    """Every character but the delimiter is itself; a blank line is a bad line, not nothing."""
    return pa.csv.ParseOptions(
        delimiter=delimiter,
        quote_char=False,
        double_quote=False,
        escape_char=False,
        ignore_empty_lines=False,
    )


def _csv_error(path: Path, error: Exception, names: Sequence[str]) -> DatasetError:
    """Say file, line and column of what Arrow refused, as far as its message tells them."""
    text = str(error).splitlines()[0]
    row = re.search(r"Row #(\d+): ", text)
    column = re.search(r"CSV column #(\d+): ", text)
    where = str(path)
    where += f", line {row[1]}" if row else ""
    where += f", column {names[int(column[1])]}" if column else ""
    what = text[max(m.end() for m in (row, column) if m) :] if row or column else text
    return DatasetError(f"{where}: {what[:200]}")
