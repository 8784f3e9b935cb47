from dataclasses import replace
from typing import Any

import pytest

from embedding.spec.admission import CounterAdmission, FrequencyAdmission
from embedding.spec.composition import Adaptive, DynamicDimension, MultiHash, compose
from embedding.spec.eviction import Eviction
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Adagrad
from embedding.spec.table import TableSpec, WarmStart

TABLE = TableSpec(
    name="t",
    dim=6,
    initializer=Constant(value=1.0),
    optimizer=Adagrad(learning_rate=0.5),
    admission=CounterAdmission(min_count=2),
    eviction=Eviction(steps_to_live=9),
    default_value=1.0,
    seed=5,
)


@pytest.mark.parametrize(("operation", "dim"), [("add", 6), ("multiply", 6), ("concatenate", 3)])
def test_both_tables_of_a_multi_hash_have_the_tables_settings(operation: Any, dim: int) -> None:
    composed = compose(TABLE, MultiHash(modulus=10, operation=operation))

    assert composed.tables == (
        replace(TABLE, name="t_quotient", dim=dim),
        replace(TABLE, name="t_remainder", dim=dim),
    )
    assert composed.operation == operation
    assert [(part.table, part.dim, part.divisor) for part in composed.parts] == [
        ("t_quotient", dim, 10),
        ("t_remainder", dim, 10),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulus": 1}, "modulus must be in"),
        ({"modulus": 2**63}, "modulus must be in"),
        ({"modulus": 3, "operation": "mult"}, "operation must be add, multiply or concatenate"),
    ],
)
def test_a_multi_hash_out_of_range_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHash(**options)


def test_halves_need_an_even_dim() -> None:
    with pytest.raises(ValueError, match="even dim, got 5"):
        compose(replace(TABLE, dim=5), MultiHash(modulus=3, operation="concatenate"))


def test_blocks_ask_for_the_frequency_in_the_first_one() -> None:
    composed = compose(TABLE, DynamicDimension(min_counts=(10, 100)))

    first, second, third = composed.tables
    assert first == replace(TABLE, dim=2)
    assert second == replace(
        first,
        name="t_block1",
        admission=FrequencyAdmission(table="t", min_count=10),
        default_value=0.0,
    )
    assert (third.name, third.admission) == (
        "t_block2",
        FrequencyAdmission(table="t", min_count=100),
    )
    assert [(part.table, part.dim, part.keys) for part in composed.parts] == [
        ("t", 2, "own"),
        ("t_block1", 2, "own"),
        ("t_block2", 2, "own"),
    ]
    assert composed.operation == "concatenate"


@pytest.mark.parametrize("counts", [(), (0,), (3, 3), (5, 2), (2**31,)])
def test_counts_of_blocks_must_increase(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="min_counts must"):
        DynamicDimension(min_counts=counts)


def test_blocks_must_share_the_columns_evenly() -> None:
    with pytest.raises(ValueError, match="dim must be a multiple of its 4 blocks, got 6"):
        compose(TABLE, DynamicDimension(min_counts=(1, 2, 3)))


def test_own_rows_come_before_the_static_ones_that_they_start_from() -> None:
    composed = compose(TABLE, Adaptive(static_rows=8192))

    own, static = composed.tables
    assert own == replace(TABLE, warm_start=WarmStart(table="t_static", static_rows=8192))
    # Usage was for the eviction.
    plain = {"admission": None, "eviction": None, "track_usage": False}
    assert static == replace(TABLE, name="t_static", **plain)
    assert [(part.table, part.keys, part.divisor) for part in composed.parts] == [
        ("t", "own", 1),
        ("t_static", "static", 2),
    ]
    assert composed.operation == "select"


def test_an_adaptive_table_needs_an_admission_rule() -> None:
    with pytest.raises(ValueError, match="needs an admission rule"):
        compose(replace(TABLE, admission=None), Adaptive(static_rows=4096))


@pytest.mark.parametrize("static_rows", [0, 4095, 4097, 2**41])
def test_static_rows_are_shared_evenly_by_the_buckets(static_rows: int) -> None:
    with pytest.raises(ValueError, match="static_rows must be a multiple of 4096"):
        Adaptive(static_rows=static_rows)
