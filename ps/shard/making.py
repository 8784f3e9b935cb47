"""The tables of a shard, empty."""

from collections.abc import Mapping

from blake3 import blake3

from embedding.spec.tiers import Tiers
from embedding.table.links import make_variables
from embedding.table.variable import EmbeddingVariable
from ps.spec import StoreSpec


def tables_of(store: StoreSpec, tiers: Mapping[str, Tiers] | None) -> list[EmbeddingVariable]:
    """Make the tables of a store; of what they write to a disk a checkpoint may take the files."""
    # Workers push finite gradients only, but the sum of some may overflow.
    tables = make_variables(store.tables, on_non_finite="skip", tiers=tiers)
    for table in tables:
        table.digest_segments(_digest)
    return tables


def _digest(segment: memoryview) -> bytes:
    """Return what `ps.checkpoint.checksums` has of a part of a file."""
    return blake3(segment).digest()
