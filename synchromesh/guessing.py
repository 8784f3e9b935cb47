"""A first job file for a Parquet file: each column's part is guessed, and the guess explained."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from worker.data.column_types import is_list, is_number, storage_type
from worker.data.file_columns import named_table, names_in_file
from worker.data.footers import open_source, read_footer, unreadable
from worker.data.planning import find_files
from worker.errors import DataError

Part = Literal["label", "weight", "dense", "sparse", "left out"]

SAMPLE_ROWS = 20_000
_LABELS = ("label", "click", "clicked", "is_click", "target", "y", "conversion", "converted")
_KEY_NAME = re.compile(r"(^|_)(id|ids|key|code|hash|cat|category)$|[a-z]I[dD]s?$", re.IGNORECASE)
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime)$|_at$", re.IGNORECASE)
_TIME_VALUE = re.compile(r"[12][0-9]{3}-?[0-9]{2}(-?[0-9]{2})?([T ].*)?")
_TIME = "is a time: a model that learns it knows the past alone"
_WEIGHTS = ("sample_weight", "sample_weights", "example_weight", "instance_weight",
            "importance_weight", "weight")  # fmt: skip
_FEW_VALUES = 50
_HASHED = 1 << 31
_UNITS = (1, 1_000, 1_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Guess:
    """What a column is taken for, and why."""

    column: str
    part: Part
    why: str


def job_for(patterns: Sequence[str], *, name: str = "first") -> str:
    """Return the text of a job file for the files that patterns name.

    Looks at the schema and at the first rows, 20,000 at most, of the first file that has some.

    Raises:
        StorageError: a pattern names no file.
        DataError: the file can't be read, has no rows, or no column that could be a label or
            features.
    """
    file, table, outside = _first_rows(patterns)
    guesses = _guesses(table, outside)
    labels = [guess for guess in guesses if guess.part == "label"]
    if not labels:
        raise DataError(
            what="no column holds 0 and 1 alone, as a label does",
            file=file,
            got=f"its columns are {', '.join(table.column_names)}",
            remedy="Write the label as a column of 0 and 1",
        )
    if not any(guess.part == "sparse" for guess in guesses):
        raise DataError(
            what="no column looks like ids",
            file=file,
            got=f"its columns are {', '.join(table.column_names)}",
            remedy="Write a job file by hand: docs/jobs.md has every key",
        )
    return _text(patterns, name, table, guesses, labels[0])


def _first_rows(patterns: Sequence[str]) -> tuple[str, pa.Table, set[str]]:
    """Return the first file that has rows, those, and the columns that are one value in it."""
    found = find_files(patterns)
    for file in found:
        with open_source(file.path) as source:
            footer = read_footer(source, file.path)
            if not footer.metadata.num_rows:
                continue
            names = file.all_names(footer.schema)
            columns = file.columns(footer.schema, names)
            outside = {column.name for column in columns if column.column is None}
            try:
                reader = pq.ParquetFile(source)
                batch = next(
                    reader.iter_batches(SAMPLE_ROWS, columns=names_in_file(names, columns))
                )
            except (OSError, ValueError, pa.ArrowException, StopIteration) as error:
                raise unreadable("a file's first rows can't be read", file.path, error) from error
        table = _plain(named_table(pa.Table.from_batches([batch]), names, columns))
        return file.path, table, outside
    raise DataError(
        what="the files hold no sample",
        file=found[0].path,
        got=f"{len(found)} files without rows",
        remedy="Name files with rows",
    )


def _plain(table: pa.Table) -> pa.Table:
    """Return the table without dictionaries and views, which not all functions of Arrow take."""
    for at, name in enumerate(table.column_names):
        kind = table.schema.field(at).type
        if pa.types.is_dictionary(kind):
            table = table.set_column(at, name, table.column(at).cast(kind.value_type))
        elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            plain = pa.string() if pa.types.is_string_view(kind) else pa.binary()
            table = table.set_column(at, name, table.column(at).cast(plain))
    return table


# Guesses ------------------------------------------------------------------------------------------


def _guesses(table: pa.Table, outside: Collection[str]) -> list[Guess]:
    """Guess each column's part; the first of several possible labels is the label.

    Args:
        outside: columns that files don't hold, as they are one value for all rows of each.
    """
    inside = table.select([name for name in table.column_names if name not in outside])
    label = _label_of(inside)
    weight = _weight_of(inside, label)
    found = []
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == label:
            found.append(Guess(name, "label", "holds 0 and 1 alone"))
        elif name == weight:
            found.append(Guess(name, "weight", "is named like the weights of samples"))
        elif name in outside:
            found.append(_guess_outside(name, column))
        else:
            found.append(_guess(name, column, None if label is None else table.column(label)))
    return found


def _label_of(table: pa.Table) -> str | None:
    """Return the column that is most likely the label: by its name, else the first of 0 and 1."""
    possible = [n for n in table.column_names if _holds_zero_and_one(table.column(n))]
    by_name = [name for name in possible if name.lower() in _LABELS]
    return next(iter([*sorted(by_name, key=lambda n: _LABELS.index(n.lower())), *possible]), None)


def _weight_of(table: pa.Table, label: str | None) -> str | None:
    """Return the column that is named like the weights of samples and could be them."""
    possible = [name for name in table.column_names if name.lower() in _WEIGHTS and name != label]
    possible = [name for name in possible if _holds_weights(table.column(name))]
    return min(possible, key=lambda name: _WEIGHTS.index(name.lower()), default=None)


def _holds_weights(column: pa.ChunkedArray) -> bool:
    if not is_number(column.type) or column.null_count:
        return False
    values = column.cast(pa.float64(), safe=False).to_numpy()
    return bool(values.size and np.isfinite(values).all() and values.min() >= 0 < values.max())


def _holds_zero_and_one(column: pa.ChunkedArray) -> bool:
    if not is_number(column.type) or column.null_count:
        return False
    values = pc.unique(column.cast(pa.float64(), safe=False)).to_pylist()
    return bool(values) and set(values) <= {0.0, 1.0}


def _guess(name: str, column: pa.Array, label: pa.ChunkedArray | None) -> Guess:
    kind = storage_type(column.type)
    if label is not None and not is_list(column.type) and _decides(column, label):
        return Guess(name, "left out", "decides the label: none of its values has both")
    if column.null_count == len(column):
        return Guess(name, "left out", f"has no value in the first {len(column):,} rows")
    if is_list(column.type):
        return _guess_list(name, column)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return Guess(name, "left out", _TIME)
    if _is_text(kind):
        distinct = pc.count_distinct(column).as_py()
        if distinct > _FEW_VALUES and distinct >= 0.99 * (len(column) - column.null_count):
            return Guess(name, "left out", "has another text in every row")
        return Guess(name, "sparse", f"text, {distinct:,} values in {len(column):,} rows")
    if not is_number(kind):
        return Guess(name, "left out", f"{kind} is neither a number nor a key")
    values = column.cast(pa.float64(), safe=False).drop_null()
    distinct = pc.count_distinct(values).as_py()
    if distinct == 1:
        return Guess(name, "left out", f"is {values[0]} in every row")
    if _TIME_NAME.search(name) or _are_moments(values):
        return Guess(name, "left out", _TIME)
    if not pa.types.is_integer(kind):
        return Guess(name, "dense", f"{kind}, {distinct:,} values")
    return _guess_integer(name, values, distinct, len(column))


def _guess_outside(name: str, column: pa.Array) -> Guess:
    value = str(column[0].as_py())
    if _TIME_NAME.search(name) or _TIME_VALUE.fullmatch(value):
        return Guess(name, "left out", _TIME)
    kind = storage_type(column.type)
    if _is_text(kind) or pa.types.is_integer(kind):
        return Guess(name, "sparse", f"one value for a file, {value} in the first")
    return Guess(name, "left out", f"one {kind} for a file, {value} in the first")


def _guess_integer(name: str, values: pa.Array, distinct: int, rows: int) -> Guess:
    low, high = pc.min_max(values).as_py().values()
    if distinct == rows and rows > _FEW_VALUES and high - low == rows - 1:
        return Guess(name, "left out", "numbers the rows")
    if _KEY_NAME.search(name):
        if distinct > _FEW_VALUES and distinct >= 0.99 * rows:
            return Guess(name, "left out", "is named like an id, and has another one in every row")
        return Guess(name, "sparse", f"is named like an id; {distinct:,} values")
    if max(abs(low), abs(high)) >= _HASHED:
        return Guess(name, "sparse", f"integers as large as hashes; {distinct:,} values")
    if distinct <= _FEW_VALUES:
        return Guess(name, "sparse", f"integers of {distinct:,} values: categories?")
    return Guess(name, "dense", f"integers from {low:,.0f} to {high:,.0f}: counts?")


def _are_moments(values: pa.Array) -> bool:
    """Whether numbers are seconds, milli-, micro- or nanoseconds of the years 1990 to 2100."""
    low, high = pc.min_max(values).as_py().values()
    return any(631_152_000 * unit <= low and high < 4_102_444_800 * unit for unit in _UNITS)


def _decides(column: pa.Array, label: pa.ChunkedArray) -> bool:
    """Whether each of a few values that are often there has one label only, as leaks have."""
    table = pa.table({"value": column, "label": label.cast(pa.float64(), safe=False)})
    try:
        groups = table.group_by("value").aggregate([("label", "min"), ("label", "max")])
    except pa.ArrowException:  # no values that can be grouped
        return False
    pure = pc.all(pc.equal(groups["label_min"], groups["label_max"])).as_py()
    return bool(pure) and groups.num_rows >= 2 and len(column) >= 10 * groups.num_rows


def _guess_list(name: str, column: pa.Array) -> Guess:
    flat = column.flatten()
    kind = storage_type(flat.type)
    lengths = pc.list_value_length(column).drop_null().to_numpy(zero_copy_only=False)
    shape = f"lists of {np.mean(lengths):.1f} on average" if lengths.size else "lists"
    if pa.types.is_integer(kind) or _is_text(kind):
        return Guess(name, "sparse", f"{shape}, of {kind}")
    return Guess(name, "left out", f"{shape} of {kind}: another column's weights?")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    )


# Text ---------------------------------------------------------------------------------------------


def _text(
    patterns: Sequence[str], name: str, table: pa.Table, guesses: list[Guess], label: Guess
) -> str:
    dense = [guess for guess in guesses if guess.part == "dense"]
    skewed = [guess.column for guess in dense if _is_skewed(table.column(guess.column))]
    transform = "log1p" if skewed else "none"
    lines = [
        f"# Written for {', '.join(patterns)} from its first {len(table):,} rows. What is said of",
        "# a column is why it was taken for what it is; docs/jobs.md has every key.",
        "",
        f"name: {_quoted(name)}",
        "seed: 1",
        "",
        "data:",
        f"  train: {_quoted(list(patterns))}",
        "  # eval: ...              # other files of the same columns, scored at the end",
        f"  label: {_quoted(label.column)}  # {label.why}",
    ]
    weights = [guess for guess in guesses if guess.part == "weight"]
    lines += [f"  weight: {_quoted(each.column)}  # {each.why}" for each in weights]
    lines += ["  dense:" if dense else "  dense: []"]
    lines += [f"    - {_quoted(guess.column)}  # {guess.why}" for guess in dense]
    if dense:
        why = f"counts such as {skewed[0]} have a long tail" if skewed else "no long tails"
        lines += [f"  dense_transform: {transform}  # log1p or none; {why}"]
    lines += ["  sparse:"]
    for guess in guesses:
        if guess.part != "sparse":
            continue
        entry = f"column: {_quoted(guess.column)}"
        if not _TABLE_NAME.fullmatch(guess.column):
            entry += f", name: {_legal(guess.column)}"
        if is_list(table.column(guess.column).type):
            entry += ", combiner: mean"
        lines += [f"    - {{{entry}}}  # {guess.why}"]
    left = [guess for guess in guesses if guess.part == "left out"]
    lines += [f"  # left out: {_quoted(guess.column)}, {guess.why}" for guess in left]
    model = "dlrm" if dense else "deepfm"
    layers = "  bottom_mlp: [64, 32]\n  top_mlp: [64, 32]" if dense else "  mlp: [64, 32]"
    lines += [
        "  batch_size: 2048",
        "",
        "embedding:",
        "  dim: 16                # of every table; tables: NAME: {dim: ...} for a single one",
        "",
        "model:",
        f"  type: {model}          # dlrm takes dense columns too; deepfm and wide_deep do without",
        layers,
        "",
        "training:",
        "  mode: sync             # the same bits on any number of processes; async, gba: faster",
        "",
        "cluster:",
        "  workers: 2",
        "  servers: 1",
        "",
        "run:",
        f"  dir: {_quoted(f'runs/{name}')}",
    ]
    return "\n".join(lines) + "\n"


_TABLE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def _legal(column: str) -> str:
    """Return a name that a table may have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", column)


def _is_skewed(column: pa.ChunkedArray) -> bool:
    """Whether numbers are not negative and the largest is far from the middle, as of counts."""
    values = column.cast(pa.float64(), safe=False).drop_null()
    low, high = pc.min_max(values).as_py().values()
    middle = pc.quantile(values, 0.5)[0].as_py()
    return low is not None and low >= 0 and high > 100 * max(1.0, middle)


def _quoted(value: Any) -> str:
    """Return a value as YAML on one line, in quotes where it needs them."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
