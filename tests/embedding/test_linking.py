"""Tables that read another table: dynamic dimensions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec, step_scalars
from embedding.composition_spec import DynamicDimension, compose
from embedding.linking import check_links, make_variables
from embedding.spec import (
    Adagrad,
    BloomAdmission,
    Constant,
    CounterAdmission,
    FrequencyAdmission,
    Sgd,
    table_from_json,
    to_json,
)

TABLE = TableSpec(name="t", dim=6, initializer=Constant(value=1.0), optimizer=Sgd(learning_rate=1))


def pull(table: EmbeddingVariable, keys: list[int], counts: list[int] | None) -> tuple[Any, Any]:
    values = np.empty((len(keys), table.spec.dim), np.float32)
    admitted = np.empty(len(keys), np.uint8)
    given = None if counts is None else np.array(counts, np.uint32)
    table.pull(np.array(keys, np.int64), given, values, admitted)
    return values, admitted


def train(
    tables: list[EmbeddingVariable], keys: list[int], counts: list[int], *, step: int, scale: float
) -> list[Any]:
    """One step as a worker and a shard do it: pull all tables, then apply to all; the vectors."""
    pulled = [pull(table, keys, counts) for table in tables]
    gradient = np.arange(len(keys) * 6, dtype=np.float32).reshape(-1, 6)
    column = 0
    for table, (_, admitted) in zip(tables, pulled, strict=True):
        dim = table.spec.dim
        table.apply(
            np.array(keys, np.int64),
            np.array(counts, np.int64),
            np.ascontiguousarray(gradient[:, column : column + dim]),
            admitted,
            step=step,
            scale=scale,
            scalars=step_scalars(table.spec.optimizer, learning_rate=1, step=step),
        )
        column += dim
    return [values for values, _ in pulled]


def test_blocks_that_are_all_reached_from_the_start_are_a_plain_table() -> None:
    table = replace(TABLE, optimizer=Adagrad())
    blocks = make_variables(compose(table, DynamicDimension(min_counts=(1, 2))).tables)
    plain = EmbeddingVariable(table)
    keys, counts = [3, -1, 2**63 - 1], [2, 5, 2]

    for step in range(4):
        (whole,) = train([plain], keys, counts, step=step, scale=0.5)
        parts = train(blocks, keys, counts, step=step, scale=0.5)

        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert plain.frequency(np.array(keys)).tolist() == [8, 20, 8]


@pytest.mark.parametrize(
    "admission", [None, CounterAdmission(min_count=2), BloomAdmission(min_count=2, max_elements=99)]
)
def test_a_block_opens_once_the_key_was_seen_often_enough(admission: Any) -> None:
    table = replace(TABLE, admission=admission, default_value=9.0)
    first, second, third = make_variables(
        compose(table, DynamicDimension(min_counts=(3, 5))).tables
    )
    keys = [7, 8]
    opened = []
    for step, counts in enumerate([[1, 2], [1, 2], [1, 2], [2, 2]]):
        opened.append([pull(block, keys, counts)[1].tolist() for block in (second, third)])
        train([first, second, third], keys, counts, step=step, scale=1.0)

    assert opened == [
        [[0, 0], [0, 0]],
        [[0, 1], [0, 0]],
        [[1, 1], [0, 1]],
        [[1, 1], [1, 1]],
    ]
    assert first.frequency(np.array(keys)).tolist() == [5, 8]


def test_a_block_that_is_missing_reads_as_zeros_and_costs_nothing() -> None:
    first, second = make_variables(
        compose(replace(TABLE, default_value=9.0), DynamicDimension(min_counts=(3,))).tables
    )
    before = second.memory()["total"]

    for step in range(2):
        values = train([first, second], [1, 2], [1, 1], step=step, scale=1.0)
        assert (values[1] == 0).all()

    assert len(first) == 2
    assert (len(second), second.num_unadmitted) == (0, 0)
    assert second.memory()["total"] == before


def test_evaluation_asks_for_the_frequency_so_far() -> None:
    blocks = make_variables(compose(TABLE, DynamicDimension(min_counts=(3,))).tables)
    train(blocks, [1, 2], [3, 2], step=0, scale=0.0)

    values, admitted = pull(blocks[1], [1, 2, 4], None)

    assert admitted.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(values, [[1, 1, 1], [0, 0, 0], [0, 0, 0]])


def test_a_pull_of_a_block_changes_nothing() -> None:
    blocks = make_variables(compose(TABLE, DynamicDimension(min_counts=(1,))).tables)

    for _ in range(3):
        pull(blocks[1], [1, 2], [1, 1])

    assert [len(block) for block in blocks] == [0, 0]


def asking(name: str, other: str) -> TableSpec:
    return replace(TABLE, name=name, admission=FrequencyAdmission(table=other, min_count=2))


ASKING = asking("asking", "t")


def test_a_table_is_made_with_the_base_that_it_names() -> None:
    with pytest.raises(ValueError, match="table asking needs base t, got None"):
        EmbeddingVariable(ASKING)
    with pytest.raises(ValueError, match="table t needs base None, got t"):
        EmbeddingVariable(TABLE, base=EmbeddingVariable(TABLE))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([ASKING], "table asking reads table t, but there is none"),
        (
            [TABLE, ASKING, asking("x", "asking")],
            "table x reads table asking, but it reads table t itself",
        ),
    ],
)
def test_links_that_lead_nowhere_are_refused(tables: list[TableSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_links(tables)


def test_tables_come_in_the_order_given_whatever_reads_what() -> None:
    assert [table.spec.name for table in make_variables([ASKING, TABLE])] == ["asking", "t"]


def test_the_rule_comes_back_from_json() -> None:
    assert table_from_json(to_json(ASKING)) == ASKING
