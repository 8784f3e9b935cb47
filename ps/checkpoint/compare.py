"""How two checkpoints differ: rows of tables, and dense parameters."""

from dataclasses import dataclass

import numpy as np

from embedding import TableEntries, TableSpec
from ps.checkpoint.bucket_ranges import ranges_of, rows_of
from ps.checkpoint.read import CheckpointReader


@dataclass(frozen=True, slots=True)
class TableDifference:
    """What a table holds in one checkpoint and not, or otherwise, in another.

    Args:
        added, removed: rows of keys that only the second one has, or only the first.
        changed: rows that both have and that are not the same, bit for bit, in what both keep:
            vector, slots, frequency and version.
        same: rows that are.
    """

    name: str
    added: int
    removed: int
    changed: int
    same: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How two checkpoints differ.

    Args:
        tables: of either, by name.
        dense_norm: Euclidean norm of the difference of all dense parameters; None where they are
            not as many.
    """

    tables: list[TableDifference]
    dense_norm: float | None


def difference(before: CheckpointReader, after: CheckpointReader) -> Difference:
    """Compare two checkpoints; memory is taken for a range of buckets.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    old = {spec.name: spec for spec in before.store.tables}
    new = {spec.name: spec for spec in after.store.tables}
    tables = [
        _of_table(name, before, old.get(name), after, new.get(name)) for name in sorted(old | new)
    ]
    norm = None
    if before.store.dense_size == after.store.dense_size:
        vectors = (reader.dense_vector().astype(np.float64) for reader in (before, after))
        norm = float(np.linalg.norm(np.subtract(*vectors)))
    return Difference(tables, norm)


def _of_table(
    name: str,
    before: CheckpointReader,
    old: TableSpec | None,
    after: CheckpointReader,
    new: TableSpec | None,
) -> TableDifference:
    added = removed = changed = same = 0
    for buckets in ranges_of(name, before, after):
        first = None if old is None else rows_of(before, old, buckets)
        second = None if new is None else rows_of(after, new, buckets)
        if first is None or second is None:
            added += 0 if second is None else len(second.keys)
            removed += 0 if first is None else len(first.keys)
            continue
        at, where = _places(first, second)
        equal = _equal(first.take(at), second.take(where))
        if old is not None and new is not None and old.track_usage and new.track_usage:
            equal &= first.frequency[at] == second.frequency[where]
            equal &= first.version[at] == second.version[where]
        same += int(np.count_nonzero(equal))
        changed += int(np.count_nonzero(~equal))
        added += len(second.keys) - where.size
        removed += len(first.keys) - at.size
    return TableDifference(name, added, removed, changed, same)


def _places(first: TableEntries, second: TableEntries) -> tuple[np.ndarray, np.ndarray]:
    """Return where the keys are that both have."""
    by_key, by_key_too = np.argsort(first.keys), np.argsort(second.keys)
    _, at, where = np.intersect1d(
        first.keys[by_key], second.keys[by_key_too], assume_unique=True, return_indices=True
    )
    return by_key[at], by_key_too[where]


def _equal(first: TableEntries, second: TableEntries) -> np.ndarray:
    equal = np.ones(len(first.keys), np.bool_)
    for name in ("vectors", "slots"):
        a, b = getattr(first, name), getattr(second, name)
        if a.shape[1] == b.shape[1]:
            equal &= (a.view(np.uint32) == b.view(np.uint32)).all(axis=1)
        elif name == "vectors":
            equal[:] = False
    return equal
