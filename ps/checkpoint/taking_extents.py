"""Fill a table with tiers from a checkpoint without reading its rows into it: it takes the extents.

So it is where the checkpoint is on the disk of the tiers, and all rows that the table owns and that
lie in extents were written by one server: a row keeps its number there. Each segment is read once,
to be held against its digest.
"""

from pathlib import Path

import numpy as np

from embedding import EmbeddingVariable, TableSpec
from embedding.kernels.mixing import buckets_of
from embedding.table.adopting import Adoption
from embedding.table.placed_rows import rows_of_records
from ps.checkpoint.adapting import state_of
from ps.checkpoint.chosen import Chosen
from ps.checkpoint.errors import CheckpointError
from ps.checkpoint.placed_reading import PlacedReading
from ps.checkpoint.read import CheckpointReader


def take_extents(
    table: EmbeddingVariable, saved: TableSpec, reader: CheckpointReader, chosen: Chosen
) -> str | None:
    """Give an empty table its rows in extents, where it can have them as they lie.

    Returns:
        the file that said where they are, of which nothing else is to be read; None: it has none.

    Raises:
        CheckpointError: the checkpoint is damaged; the table is of no use then.
        MemoryError, TierError: the disk has no room for what it would write, or can't be read.
    """
    adoption = table.adoption()
    if adoption is None or not _same_values(table.spec, saved):
        return None
    reading = _reading(reader, saved, chosen)
    if reading is None:
        return None
    files = {each.file.path: each.file for each in reading.segments.values()}
    directory = reading.directory
    if not isinstance(directory, Path) or not all(
        adoption.can_take(directory / path, reading.segment_bytes) for path in files
    ):
        return None
    hidden = reader.named_above(saved)
    own: dict[int, int] = {}  # the number of each segment here
    whole = chosen.ranges[0][0], chosen.ranges[-1][1]
    for number, placed, data in reading.segments_with(whole):
        first = number * reading.segments[number].part.rows
        mine = chosen.own[buckets_of(placed.keys)]
        if len(hidden):
            mine &= ~hidden.has(placed.keys)
        if not mine.any():
            continue
        placed = placed.take(np.flatnonzero(mine))
        placed.records[:] -= first
        if number not in own:
            own |= _adopted(adoption, reading, number)
        try:
            rows = rows_of_records(saved, memoryview(data), placed.records)
            adoption.take(placed, rows, own[number])
        except ValueError as error:
            path = directory / reading.segments[number].file.path
            raise CheckpointError(f"{path} is damaged: {error}") from error
    adoption.end()
    return reading.index.path


def _reading(reader: CheckpointReader, saved: TableSpec, chosen: Chosen) -> PlacedReading | None:
    """Return what reads the rows that lie in extents, where one server wrote all of them."""
    full = reader.chain[-1]
    writers = set(full.store.routing.buckets[chosen.own].tolist())
    found = [each for each in full.placed(saved.name) if each.shard in writers]
    return found[0] if len(found) == 1 else None


def _same_values(wanted: TableSpec, saved: TableSpec) -> bool:
    """Return whether rows of two tables have the same words."""
    return (wanted.dim, wanted.value_dtype, state_of(wanted.optimizer)) == (
        saved.dim,
        saved.value_dtype,
        state_of(saved.optimizer),
    )


def _adopted(adoption: Adoption, reading: PlacedReading, number: int) -> dict[int, int]:
    """Take the extent of a segment; return the number that each of its segments has here."""
    file = reading.segments[number].file
    assert isinstance(reading.directory, Path), "it was looked at before"
    numbers = sorted(n for n, each in reading.segments.items() if each.file is file)
    digests = [reading.segments[n].part.digest for n in numbers]
    return dict(zip(numbers, adoption.extent(reading.directory / file.path, digests), strict=True))
