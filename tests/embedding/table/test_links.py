"""Tables that read another table: dynamic dimensions, and rows that start from static ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec, step_scalars
from embedding.spec.admission import BloomAdmission, CounterAdmission, FrequencyAdmission
from embedding.spec.composition import Adaptive, DynamicDimension, compose
from embedding.spec.initial_values import Constant, Uniform
from embedding.spec.json_form import table_from_json, to_json
from embedding.spec.optimizers import Adagrad, Sgd
from embedding.table.key_maps import static_keys
from embedding.table.links import check_links, make_variables

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
OWN, STATIC = compose(
    replace(
        TABLE,
        optimizer=Adagrad(learning_rate=1, initial_accumulator=0.5),
        admission=CounterAdmission(min_count=3),
    ),
    Adaptive(static_rows=4096),
).tables


# Warm starts --------------------------------------------------------------------------------------


def apply(table: EmbeddingVariable, keys: list[int], gradient: float, *, step: int) -> None:
    table.apply(
        np.array(keys, np.int64),
        np.ones(len(keys), np.int64),
        np.full((len(keys), table.spec.dim), gradient, np.float32),
        None,
        step=step,
        scale=1.0,
        scalars=step_scalars(table.spec.optimizer, learning_rate=1, step=step),
    )


def adaptive() -> tuple[EmbeddingVariable, EmbeddingVariable, list[int], int]:
    """Both tables, two keys that share a static row, and the key of that row, trained once."""
    own, static = make_variables([OWN, STATIC])
    everyone = np.arange(20_000)
    shared = static_keys(everyone, 1)
    keys = everyone[shared == shared[5]][:2].tolist()
    apply(static, [int(shared[5])], 2.0, step=0)
    return own, static, keys, int(shared[5])


def test_an_admitted_key_without_a_row_reads_its_static_row() -> None:
    own, static, keys, static_key = adaptive()
    (vector,), _ = pull(static, [static_key], None)
    assert (vector != 1).all(), "it was trained"

    values, admitted = pull(own, keys, [3, 1])

    assert admitted.tolist() == [1, 0]
    np.testing.assert_array_equal(values[0], vector)
    assert (len(own), len(static)) == (0, 1), "a pull changes nothing"


def test_an_own_row_starts_as_a_copy_with_fresh_slots() -> None:
    own, static, keys, static_key = adaptive()
    (vector,), _ = pull(static, [static_key], None)

    apply(own, keys, 0.0, step=1)
    apply(static, [static_key], 1.0, step=1)

    entries = own.export()
    np.testing.assert_array_equal(entries.vectors, [vector, vector])
    np.testing.assert_array_equal(entries.slots, np.full((2, 6), 0.5))
    np.testing.assert_array_equal(pull(own, keys, None)[0], entries.vectors)
    assert (pull(static, [static_key], None)[0][0] != vector).all(), "they go separate ways"


def test_a_key_that_is_only_counted_gets_no_row() -> None:
    own, _, keys, _ = adaptive()

    own.apply(
        np.array(keys), np.ones(2, np.int64), np.ones((2, 6), np.float32),
        np.array([0, 1], np.uint8), step=1, scale=1.0,
        scalars=step_scalars(OWN.optimizer, learning_rate=1, step=1),
    )  # fmt: skip

    assert own.export().keys.tolist() == [keys[1]]
    assert own.num_unadmitted == 1


def test_a_static_row_that_was_never_trained_gives_its_initial_value() -> None:
    own, static = make_variables(
        [replace(OWN, initializer=Uniform()), replace(STATIC, initializer=Uniform())]
    )
    expected, _ = pull(static, static_keys(np.array([5]), 1).tolist(), None)

    apply(own, [5], 0.0, step=0)

    np.testing.assert_array_equal(own.export().vectors, expected)


@pytest.mark.parametrize("value_dtype", ["float16", "bfloat16", "int8"])
def test_a_copy_of_fewer_bits_is_exact(value_dtype: Any) -> None:
    narrow = [replace(table, value_dtype=value_dtype) for table in (OWN, STATIC)]
    own, static = make_variables([replace(table, initializer=Uniform()) for table in narrow])
    static_key = int(static_keys(np.array([5]), 1)[0])
    apply(static, [static_key], 0.3, step=0)
    (vector,), _ = pull(static, [static_key], None)

    (seen,), _ = pull(own, [5], [3])
    apply(own, [5], 0.0, step=1)

    np.testing.assert_array_equal(seen, vector)
    np.testing.assert_array_equal(own.export().vectors[0], vector)


def test_a_returning_key_starts_from_the_static_row_of_now() -> None:
    own, static, keys, static_key = adaptive()
    apply(own, keys, 5.0, step=1)
    own.evict(min_version=2)
    apply(static, [static_key], 1.0, step=2)

    values, _ = pull(own, keys, [3, 3])

    np.testing.assert_array_equal(values[1], pull(static, [static_key], None)[0][0])


# Links --------------------------------------------------------------------------------------------


def test_a_table_is_made_with_the_base_that_it_names() -> None:
    with pytest.raises(ValueError, match="table asking needs table t as its base, got none"):
        EmbeddingVariable(ASKING)
    with pytest.raises(ValueError, match="table t needs no base, got table t"):
        EmbeddingVariable(TABLE, base=EmbeddingVariable(TABLE))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([ASKING], "table asking reads table t, but there is none"),
        (
            [TABLE, ASKING, asking("x", "asking")],
            "table x reads table asking, but it reads table t itself",
        ),
        ([OWN], "table t reads table t_static, but there is none"),
        ([STATIC, OWN], "table t must be listed before table t_static"),
        ([OWN, replace(STATIC, dim=3)], "must have its dim 6, .* got 3, float32"),
        (
            [OWN, replace(STATIC, value_dtype="float16")],
            "its value_dtype float32 .* got 6, float16",
        ),
        ([OWN, replace(STATIC, admission=CounterAdmission())], "and no admission"),
    ],
)
def test_links_that_lead_nowhere_are_refused(tables: list[TableSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_links(tables)


def test_tables_come_in_the_order_given_whatever_reads_what() -> None:
    assert [table.spec.name for table in make_variables([ASKING, TABLE])] == ["asking", "t"]


@pytest.mark.parametrize("spec", [ASKING, OWN, STATIC], ids=lambda spec: spec.name)
def test_links_come_back_from_json(spec: TableSpec) -> None:
    assert table_from_json(to_json(spec)) == spec


def test_a_table_reads_one_other_at_most() -> None:
    with pytest.raises(ValueError, match="can't have both warm_start and an admission"):
        replace(ASKING, warm_start=OWN.warm_start)
