"""Rows of a checkpoint whose values are in extents, files that a table with tiers has written.

    tables/NAME/placed-00000-of-00002.arrow          record, key, (frequency, version)
    tables/NAME/extent.000000040-00000-of-00002.bin  segments 40, 41, ... of shard 0

An extent is what the table's server has on its disk, under a second name: no byte of it was written
for the checkpoint. It is segments of equal size, each of blocks of 4 KiB or a multiple, each of
records as `embedding.table.tier_file.layout_of` says: the row's number, then its values as they are
in memory, words of 4 bytes, little-endian. Record n of a table is record n % r of segment n // r,
of r in each. Of what a record holds that is not placed nothing is said: it was left behind. A
segment is one part of its file, and so has a digest; those of `placed` are by ranges of records.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import TableSpec
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.table.tier_extents import HeldExtents
from ps.checkpoint.checksums import TREE_VERSION, digest_of, tree_digest
from ps.checkpoint.file_parts import FileEntry, FilePart
from runtime.places import Place

_EXTENT = re.compile(r"extent\.(\d{1,10})-\d+-of-\d+\.bin")


def placed_schema(spec: TableSpec) -> pa.Schema:
    """Return the columns of a table's rows that are in extents."""
    usage = ("frequency", "version") if spec.track_usage else ()
    return pa.schema([(name, pa.int64()) for name in ("record", "key", *usage)])


def is_extent(path: str) -> bool:
    """Return whether a file of a checkpoint is an extent."""
    return first_segment(path) is not None


def first_segment(path: str) -> int | None:
    """Return the number of an extent's first segment; None: it is no extent."""
    found = _EXTENT.fullmatch(path.rpartition("/")[2])
    return None if found is None else int(found[1])


def can_refer(held: HeldExtents | None, root: Place) -> bool:
    """Return whether a checkpoint may name extents: they lie on the same disk as it."""
    if held is None or not held.extents or not isinstance(root, Path):
        return False
    folder = next(each for each in (root, *root.parents) if each.exists())
    return os.stat(folder).st_dev == held.extents[0].device


def keep_extents(
    held: HeldExtents, root: Path, folder: Path, suffix: str, used: npt.NDArray[np.bool_]
) -> Iterator[tuple[FileEntry, list[FilePart]]]:
    """Give extents a name in a checkpoint; yield what is said of each, once it is on the disk.

    Args:
        folder: of the table, relative to `root`; it is there.
        suffix: how the names of the shard's files end.
        used: bool[segments of all], whether anything of each is wanted.

    Raises:
        OSError: one was not written, or can't be kept.
    """
    for extent, (first, end) in zip(held.extents, pairwise(held.first_segments), strict=True):
        if not used[first:end].any():
            continue
        digests = extent.finish()
        name = (folder / f"extent.{first:09d}-{suffix.removesuffix('.arrow')}.bin").as_posix()
        num_bytes = held.segment_bytes * len(digests)
        extent.keep(root / name, num_bytes)
        parts = [
            FilePart(name, 0, NUM_BUCKETS, held.per_segment, held.segment_bytes, digest)
            for digest in digests
        ]
        of_file = tree_digest([*digests, digest_of(b"", TREE_VERSION)]).hex()
        rows = held.per_segment * len(digests)
        yield FileEntry(name, num_bytes, of_file, rows), parts


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a segment is, and what it must be: `file`, and `part`, `offset` bytes on in it."""

    file: FileEntry
    part: FilePart
    offset: int


def segments_of(
    files: Sequence[FileEntry], parts: dict[str, list[FilePart]], shard: str
) -> dict[int, Segment]:
    """Return the segments of a shard's extents, by number.

    Args:
        files, parts: of a table.
        shard: how the names of its extents end.

    Raises:
        ValueError: two have a number, or they are not of one size.
    """
    found: dict[int, Segment] = {}
    for entry in files:
        number = first_segment(entry.path)
        if number is None or not entry.path.endswith(shard):
            continue
        offset = 0
        for at, part in enumerate(parts.get(entry.path, ()), number):
            if at in found:
                raise ValueError(f"segment {at} is in {found[at].file.path} and {entry.path}")
            found[at] = Segment(entry, part, offset)
            offset += part.num_bytes
    if len({(each.part.num_bytes, each.part.rows) for each in found.values()}) > 1:
        raise ValueError(f"segments of several sizes in extents {shard}")
    return found
