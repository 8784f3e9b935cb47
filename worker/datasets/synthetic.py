"""Criteo-like data sets drawn from the planted world, written as Parquet.

A data set is `train/part-*.parquet`, `test/part-*.parquet` and, last, `about.json` with the best
AUC and logloss that any model can reach on its test rows: those of the true probabilities.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.strict_json import json_text
from worker.datasets.files import ABOUT_FILE, DatasetError, PartWriter, staged
from worker.datasets.planted import (
    CARDINALITIES,
    CHUNK_ROWS,
    DENSE_COLUMNS,
    SPARSE_COLUMNS,
    WORLD_VERSION,
    Purchases,
    Samples,
    Split,
    draw,
    draw_purchases,
)
from worker.datasets.planted_histories import Histories, draw_histories
from worker.metrics import StreamingAuc, bin_of, log_loss_sum

FORMAT = "synchromesh-criteo-like"
LABEL_COLUMN = "label"
BUY_COLUMN = "buy"
SCHEMA = pa.schema(
    [pa.field(LABEL_COLUMN, pa.float32())]
    + [pa.field(name, pa.float32()) for name in DENSE_COLUMNS]
    + [pa.field(name, pa.int64()) for name in SPARSE_COLUMNS]
)
HISTORY_FIELDS = (
    pa.field("item", pa.int64()),
    pa.field("item_frequency", pa.float32()),
    pa.field("seen", pa.list_(pa.int64())),
)
# Measured 55 with row groups of 65536 rows; smaller row groups compress less.
_ROW_BYTES = 80
_HISTORY_BYTES = 80

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriteoLike:
    """Which data set to write. The rows depend on `seed` alone.

    Row i of a split is the same for every number of rows, of files and of rows in a row group: a
    longer data set begins with the shorter one, and `files` only says where it is cut.

    Args:
        rows: train rows.
        test_rows: None: a tenth of `rows`, at least 1.
        files: train files of about equal size; at most one for each row. Test files are
            as large, but no more of them.
        seed: of the draw. The planted world is the same for every seed.
        row_group_rows: rows of a Parquet row group.
        purchases: whether there is a second label, `buy`, of the clicks that are followed by one.
        histories: whether users have seen items before, and are offered one: columns `item`,
            `item_frequency` (how many of 10^9 samples have it) and `seen`, and other labels.
    """

    rows: int
    test_rows: int | None = None
    files: int = 8
    seed: int = 7
    row_group_rows: int = 1 << 16
    purchases: bool = False
    histories: bool = False

    def __post_init__(self) -> None:
        if self.test_rows is None:
            object.__setattr__(self, "test_rows", max(1, self.rows // 10))
        for name in ("rows", "test_rows", "files", "row_group_rows"):
            if getattr(self, name) < 1:
                raise DatasetError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 64:
            raise DatasetError(f"seed must be in [0, 2^64), got {self.seed}")

    @property
    def schema(self) -> pa.Schema:
        """Of the files."""
        buys = [pa.field(BUY_COLUMN, pa.float32())] if self.purchases else []
        histories = HISTORY_FIELDS if self.histories else ()
        return pa.schema([SCHEMA[0], *buys, *list(SCHEMA)[1:], *histories])

    @property
    def all_rows(self) -> int:
        """Train and test rows together."""
        return self.rows + (self.test_rows or 0)


def write_criteo_like(
    out: Path,
    wanted: CriteoLike,
    *,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Json:
    """Write a data set and return what its `about.json` says.

    Memory is that of a few chunks and one row group, whatever the number of rows.

    Args:
        out: directory of the data set.
        wanted: what to write.
        overwrite: replace a data set that is there.
        on_rows: called with the number of rows just written.

    Raises:
        DatasetError: see `staged`; nothing has been written then.
    """
    row_bytes = _ROW_BYTES + _HISTORY_BYTES * wanted.histories
    with staged(out, overwrite=overwrite, need_bytes=wanted.all_rows * row_bytes) as staging:
        test_rows = wanted.test_rows or 0
        test_files = min(max(1, round(wanted.files * test_rows / wanted.rows)), wanted.files)
        _write_split(staging / "train", wanted, "train", wanted.rows, wanted.files, on_rows)
        quality = _write_split(staging / "test", wanted, "test", test_rows, test_files, on_rows)
        about = _about(wanted, quality)
        (staging / ABOUT_FILE).write_text(json_text(about, indent=2) + "\n")
    return about


def read_about(data_dir: Path | str) -> Json | None:
    """Return a data set's `about.json`; None where there is none, or another program's."""
    try:
        about = json.loads((Path(data_dir) / ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and about.get("format") == FORMAT else None


def best_auc_for(paths: Sequence[str], label: str = LABEL_COLUMN) -> float | None:
    """Return the best possible AUC on the test rows that the given evaluation files hold.

    Args:
        paths: local files.
        label: column that was predicted; of another one than the click's it is not known.

    Returns:
        The `best_auc` of the `about.json` beside their `test` directory; None where the files are
        not all in the `test` directory of one data set written here, or its AUC is not defined.
    """
    directories = {Path(path).parent for path in paths}
    if len(directories) != 1:
        return None
    directory = directories.pop()
    if label != LABEL_COLUMN or directory.name != "test":
        return None
    about = read_about(directory.parent)
    best = about.get("best_auc") if about else None
    return float(best) if isinstance(best, float | int) else None


class _Quality:
    """AUC and logloss of the true probabilities: of the drawn labels, and expected over labels."""

    def __init__(self) -> None:
        self.auc = StreamingAuc()
        self._log_loss = self._entropy = 0.0
        # Expected numbers of negatives and positives in each of the AUC's bins.
        self._expected = np.zeros(self.auc.counts.shape)

    def add(self, logits: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> None:
        rounded = logits.astype(np.float32)
        self.auc.add(rounded, labels)
        self._log_loss += log_loss_sum(rounded, labels)
        positive = 1.0 / (1.0 + np.exp(-logits))
        self._entropy += float((np.logaddexp(0.0, logits) - positive * logits).sum())
        num_bins = len(self._expected[0])
        bins = bin_of(rounded, num_bins)
        self._expected[0] += np.bincount(bins, 1.0 - positive, minlength=num_bins)
        self._expected[1] += np.bincount(bins, positive, minlength=num_bins)

    def figures(self) -> Json:
        negatives, positives = self._expected
        below = np.cumsum(negatives) - 0.5 * negatives
        expected_auc = (positives * below).sum() / (positives.sum() * negatives.sum())
        n = self.auc.total
        return {
            "best_auc": _number(self.auc.value()),
            "best_auc_error_bound": _number(self.auc.error_bound()),
            "best_logloss": self._log_loss / n,
            "expected_best_auc": float(expected_auc),
            "expected_best_logloss": self._entropy / n,
            "base_rate": float(self.auc.counts[1].sum() / n),
        }


def _number(value: float) -> float | None:
    """NaN is not JSON."""
    return None if math.isnan(value) else value


class _Qualities:
    """The quality of the click's true probability and, where they are drawn, of purchases.

    Those after a click are over the clicks, those of an impression (pCTR times pCVR) over all.
    """

    def __init__(self) -> None:
        self.click, self.purchase, self.impression = _Quality(), _Quality(), _Quality()

    def add(self, samples: Samples, purchases: Purchases | None, n: int) -> None:
        self.click.add(samples.logits[:n], samples.labels[:n])
        if purchases is None:
            return
        clicked = samples.labels[:n] > 0
        buys, logits = purchases.labels[:n], purchases.logits[:n]
        self.purchase.add(logits[clicked], buys[clicked])
        a, b = -samples.logits[:n], -logits
        self.impression.add(-np.logaddexp(np.logaddexp(a, b), a + b), buys)


def _write_split(
    directory: Path,
    wanted: CriteoLike,
    split: Split,
    rows: int,
    files: int,
    on_rows: Callable[[int], None],
) -> _Qualities:
    quality = _Qualities()
    part_rows = _even_parts(rows, min(files, rows))
    with PartWriter(
        directory, wanted.schema, row_group_rows=wanted.row_group_rows, part_rows=part_rows
    ) as writer:
        for first in range(0, rows, CHUNK_ROWS):
            chunk, purchases, histories = first // CHUNK_ROWS, None, None
            if wanted.histories:
                histories = draw_histories(seed=wanted.seed, split=split, chunk=chunk)
            beside = None if histories is None else histories.logits
            samples = draw(seed=wanted.seed, split=split, chunk=chunk, beside=beside)
            if wanted.purchases:
                purchases = draw_purchases(samples, seed=wanted.seed, split=split, chunk=chunk)
            n = min(CHUNK_ROWS, rows - first)
            writer.write(_to_table(samples, purchases, histories, wanted.schema).slice(0, n))
            quality.add(samples, purchases, n)
            on_rows(n)
    return quality


def _even_parts(rows: int, parts: int) -> list[int]:
    """Return `parts` numbers that add up to `rows` and differ by at most 1."""
    edges = [rows * i // parts for i in range(parts + 1)]
    return [stop - start for start, stop in itertools.pairwise(edges)]


def _to_table(
    samples: Samples,
    purchases: Purchases | None,
    histories: Histories | None,
    schema: pa.Schema,
) -> pa.Table:
    columns = [pa.array(samples.labels)]
    columns += [] if purchases is None else [pa.array(purchases.labels)]
    columns += [
        pa.array(values, mask=nulls)
        for values, nulls in zip(samples.dense, samples.nulls, strict=True)
    ]
    columns += [pa.array(ids) for ids in samples.ids]
    if histories is not None:
        seen = pa.LargeListArray.from_arrays(histories.offsets, histories.seen)
        columns += [pa.array(histories.items), pa.array(histories.frequencies)]
        columns.append(seen.cast(pa.list_(pa.int64())))
    return pa.Table.from_arrays(columns, schema=schema)


def _about(wanted: CriteoLike, quality: _Qualities) -> Json:
    beside = {}
    if wanted.purchases:
        beside["purchases"] = {
            "column": BUY_COLUMN,
            "of_clicks": quality.purchase.figures(),
            "of_impressions": quality.impression.figures(),
        }
    return {
        "format": FORMAT,
        "format_version": WORLD_VERSION,
        "rows": wanted.rows,
        "test_rows": wanted.test_rows,
        "seed": wanted.seed,
        **quality.click.figures(),
        **beside,
        "columns": {
            "label": LABEL_COLUMN,
            "dense": list(DENSE_COLUMNS),
            "sparse": list(SPARSE_COLUMNS),
            **({"histories": [each.name for each in HISTORY_FIELDS]} if wanted.histories else {}),
        },
        "cardinalities": dict(zip(SPARSE_COLUMNS, CARDINALITIES, strict=True)),
        "versions": {"numpy": np.__version__, "numba": numba.__version__},
    }
