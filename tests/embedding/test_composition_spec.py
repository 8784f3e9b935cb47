from dataclasses import replace
from typing import Any

import pytest

from embedding.composition_spec import MultiHash, compose
from embedding.spec import Adagrad, Constant, CounterAdmission, Eviction, TableSpec

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
