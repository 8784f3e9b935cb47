"""Checkpoints that earlier versions wrote give the bits that they gave then."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables, start_shard_from
from ps.shard.shard import Shard
from ps.spec import StoreSpec

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint-1"

# Of the rows by key, column after column; counters and blocks of the Bloom filter alike. Not
# ps.digest, which another version may compute otherwise.
TABLES = {
    "a": "d245c3ad60686348ec2e41912e5da83fa910e49156ca514b3aa1a9f400df7ec9",
    "b": "a781d2a2edbda6f4bb2d55cf6c578f9e4c38749ec23371bba920764a35dccb90",
    "b_static": "4c2df2c74e00fa40a94ac89eead7666bd94ab5eedeaea5fa7c58202a422363eb",
    "tags": "287fbf72704366cc39904b0f3c689b392969e5c9142b66ef88b05220c6baaa74",
}
DENSE = "bcbc62d9f443ce9ee6335486be8c0c0b19e74eda6d93ebfb7439b1e0c2ef3d71"


def sha256(*columns: Any) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column))
    return digest.hexdigest()


def content(parts: list[EmbeddingVariable]) -> str:
    """The digest of a table whose buckets lie in several shards."""
    columns: list[Any] = []
    for kind, names in (
        ("export", ("keys", "frequency", "version", "vectors", "slots")),
        ("export_counters", ("keys", "frequency", "version")),
        ("export_bloom", ("buckets", "counters")),
    ):
        found = [getattr(part, kind)() for part in parts]
        whole = [np.concatenate([getattr(one, name) for one in found]) for name in names]
        order = np.argsort(whole[0])
        columns += [column[order] for column in whole]
    return sha256(*columns)


CHAINS = [Path(__file__).parents[2] / "golden" / f"checkpoint-{version}" for version in (2, 3)]
CHAIN_TABLES = {
    "full-000000000004": {
        "a": "1d0ad32c1253bd3b72d998e9409c21a2573abec98913586fdd572ca3c64e587c",
        "b": "8916710106d3ab87a160134e58576062c5685f7ceff6e31ca032044cc50675a3",
        "plain": "51665c34b51898ba7575fdc48bf74d77b1dbb4d4321f19968f25db97dc5c13cb",
        "tags": "c7bb140b4c220c9ca64ee7b36cdff1149762aea06e9615a96efa871b6a19e2cc",
    },
    "delta-000000000008": {
        "a": "13c0876657b4da6c46bac4e71742fb36d8cdeb6890b3ea9ca94ffedfbac5a09c",
        "b": "e8169bfe77ae0127b18d821910ec6865db54d559a15d97c9441a969ff5bd03d4",
        "plain": "8bc26cf6ed18ff3d8fd621aebe2c34c8b957a593bb6dec3f954d596289642e5e",
        "tags": "7f192827a78928c69c6008a5bc9ec5f9cc995b32f4dc728a278eb1c5049269d8",
    },
}
CHAIN_DENSE = {
    "full-000000000004": "e969179e7bd3c489b700d0b235e209031feb6ca03344d907b97d6ff685e86256",
    "delta-000000000008": "44e00213a8a7223c5ee00cb0005bd3af1aaa1c0f8966099cea3a28093dd1b732",
}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", CHAIN_TABLES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_chain_of_an_earlier_version_is_restored_bit_for_bit(
    chain: Path, name: str, num_shards: int
) -> None:
    reader = CheckpointReader(chain / name)
    reader.verify()
    spec = StoreSpec.from_json({**reader.manifest.store, "num_shards": num_shards})
    shards = [Shard(spec, index) for index in range(num_shards)]

    for shard in shards:
        start_shard_from(shard, reader, recovery_epoch=0, goes_on=True)

    found = {
        table.name: content([shard.tables[number] for shard in shards])
        for number, table in enumerate(spec.tables)
    }
    assert found == CHAIN_TABLES[name]
    assert sha256(*(shard.dense.rows for shard in shards)) == CHAIN_DENSE[name]
    assert {shard.step for shard in shards} == {int(name.split("-")[1])}
    assert (reader.manifest.kind, reader.manifest.sorted) == (name.split("-")[0], False)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_a_checkpoint_of_the_first_version_is_restored_bit_for_bit(num_shards: int) -> None:
    reader = CheckpointReader(GOLDEN)
    spec = StoreSpec.from_json({**reader.manifest.store, "num_shards": num_shards})
    shards = [Shard(spec, index) for index in range(num_shards)]

    for shard in shards:
        start_shard_from(shard, reader, recovery_epoch=0, goes_on=True)

    found = {
        table.name: content([shard.tables[number] for shard in shards])
        for number, table in enumerate(spec.tables)
    }
    assert found == TABLES
    assert sha256(*(shard.dense.rows for shard in shards)) == DENSE
    assert {shard.step for shard in shards} == {15}


def test_tables_of_a_checkpoint_of_the_first_version_are_loaded_bit_for_bit() -> None:
    reader = CheckpointReader(GOLDEN)

    assert {name: content([table]) for name, table in load_tables(reader).items()} == TABLES
    assert sha256(reader.dense_rows()) == DENSE
    assert reader.manifest.time["clock"] == 15
