import gc
import weakref
from typing import Any

import pytest

from embedding import TableSpec
from embedding.spec.optimizers import Adagrad
from ps.server import warmup
from ps.shard.shard import Shard
from ps.spec import StoreSpec


@pytest.fixture
def no_collection() -> Any:
    """Garbage is not collected by chance."""
    gc.disable()
    yield
    gc.enable()


def test_what_refers_to_itself_is_gone_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, no_collection: None
) -> None:
    """Its tables have address space reserved, which those of the job need."""
    made = []

    class Cyclic(Shard):  # as compiling a kernel leaves it
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.itself = self
            made.append(weakref.ref(self))

    monkeypatch.setattr(warmup, "Shard", Cyclic)
    tables = (TableSpec(name="t", dim=16),)
    spec = StoreSpec(tables=tables, dense_size=1, dense_optimizer=Adagrad(), num_shards=1)

    warmup.warm_up(spec)

    assert [shard() for shard in made] == [None]


def test_a_table_of_16_bits_is_warmed_up_beside_one_of_float32() -> None:
    """Its rows take kernels of their own, which would else be loaded in the midst of a step."""
    tables = (TableSpec(name="a", dim=16, value_dtype="bfloat16"), TableSpec(name="b", dim=16))
    spec = StoreSpec(tables=tables, dense_size=1, dense_optimizer=Adagrad(), num_shards=1)

    assert [table.name for table in warmup._small(spec, {}).tables] == ["a", "b"]
