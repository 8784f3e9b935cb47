"""What a job should be told of its data before it trains on them: nothing here is an error."""

import json
import os
from dataclasses import replace

import numpy as np

from worker.data.batch import Bags
from worker.data.column_types import is_list
from worker.data.file_columns import named_schema
from worker.data.footers import open_source, read_footer
from worker.data.plan import Plan
from worker.data.reading import read_file
from worker.errors import DataError
from worker.spec import FeatureSpec

SMALL_ROW_GROUP_ROWS = 5000
_FEW_ROW_GROUPS = 16
_SAMPLE_ROWS = 1024
_LEAST_PADDED = 0.05  # of the lists
_MOST_ELSEWHERE = 0.01  # of the value's places


def advice(plan: Plan, features: FeatureSpec) -> list[str]:
    """Return warnings about a plan's files, each with its remedy.

    Reads the first rows of the first file that has some, if there are features of lists. A file
    that can't be read gives no warning.
    """
    return [*_small_row_groups(plan), *_padding(plan, features)]


def shared_files(training: Plan, evaluation: Plan) -> list[str]:
    """Return a warning where files are trained on and evaluated too."""
    trained = {os.path.realpath(file.path) for file in training.files}
    shared = [file.path for file in evaluation.files if os.path.realpath(file.path) in trained]
    if not shared:
        return []
    return [
        f"{len(shared):,} of the {len(evaluation.files):,} files of data.eval are trained on too"
        f" ({shared[0]}): their scores say how well samples are remembered, not how well new"
        " ones are predicted. Leave the files out of data.train, unless that is meant"
    ]


def _small_row_groups(plan: Plan) -> list[str]:
    rows = [n for file in plan.files for n in file.row_group_rows if n]
    if len(rows) < _FEW_ROW_GROUPS or sum(rows) >= SMALL_ROW_GROUP_ROWS * len(rows):
        return []
    most = max(plan.files, key=lambda file: len(file.row_group_rows))
    return [
        f"the data have {len(rows):,} row groups of {sum(rows) / len(rows):,.0f} rows on average"
        f" ({most.path} has most of them), which are slow to read: below {SMALL_ROW_GROUP_ROWS:,}"
        " rows the cost of each shows. Write the files again with fewer, larger row groups, of"
        " 65,536 rows say (pyarrow: write_table(..., row_group_size=65536))"
    ]


def _padding(plan: Plan, features: FeatureSpec) -> list[str]:
    file = next((file for file in plan.files if sum(file.row_group_rows)), None)
    if file is None:
        return []
    try:
        with open_source(file.path) as source:
            schema = named_schema(read_footer(source, file.path).schema, file.columns)
        lists = tuple(
            replace(feature, weights=None, max_length=None)
            for feature in features.sparse
            if feature.pad is None and is_list(schema.field(feature.column).type)
        )
        if not lists:
            return []
        wanted = FeatureSpec(label=None, dense=(), dense_transform="none", sparse=lists)
        table, batch = next(read_file(file, wanted, _SAMPLE_ROWS))
    except (DataError, StopIteration):  # training meets it, if it gets there
        return []
    told = []
    for feature, bags in zip(lists, batch.sparse, strict=True):
        place = _padding_place(bags)
        if place is not None:
            row, at = place
            values = [v for v in table.column(feature.column)[row].as_py() if v is not None]
            shown = json.dumps(values[at], default=str, allow_nan=False)
            told.append(
                f"column {feature.column!r} has lists of one length, {len(values)}, that end or"
                f" begin in runs of {values[at]!r}, as lists do that were filled up: it is trained"
                " as a key of every such sample, and counts in the mean. Say"
                f" pad: {shown} in the feature to leave it out, or"
                f" write lists of their true length ({file.path})"
            )
    return told


def _padding_place(bags: Bags) -> tuple[int, int] | None:
    """Return where padding is, as (row, position in its list); None where none is seen.

    Padding is a value that lists of one length end in, or begin with, in runs of different lengths
    and that is hardly ever anywhere else.
    """
    if bags.offsets is None:
        return None
    lengths = np.diff(bags.offsets)
    rows = np.flatnonzero(lengths)
    if rows.size == 0 or lengths[rows].min() < 2 or lengths[rows].min() != lengths[rows].max():
        return None
    width = int(lengths[rows[0]])
    for backwards in (True, False):
        keys = bags.keys.reshape(rows.size, width)[:, :: -1 if backwards else 1]
        values, counts = np.unique(keys[:, 0], return_counts=True)
        same = keys == values[counts.argmax()]
        runs = np.where(same.all(axis=1), width, (~same).argmax(axis=1))
        long = runs >= 2
        elsewhere = same.sum() - runs.sum()
        if (
            long.sum() >= max(2, _LEAST_PADDED * rows.size)
            and (np.unique(runs, return_counts=True)[1] >= max(2, 0.01 * rows.size)).sum() > 1
            and elsewhere <= _MOST_ELSEWHERE * same.sum()
        ):
            return int(rows[long.argmax()]), width - 1 if backwards else 0
    return None
