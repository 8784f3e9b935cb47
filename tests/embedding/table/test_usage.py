"""Tables whose rows have no frequency and version, beside ones that have."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec
from embedding.arrow import row_schema
from embedding.spec.admission import BloomAdmission, CounterAdmission, FrequencyAdmission
from embedding.spec.eviction import Eviction
from embedding.table.links import make_variables

TRACKED = TableSpec(name="t", dim=3)
UNTRACKED = replace(TRACKED, track_usage=False)


def train(table: EmbeddingVariable, *steps: list[int], gradients: bool = True) -> None:
    for step, keys in enumerate(steps, start=1):
        n = len(keys)
        table.apply(
            np.array(keys),
            np.full(n, 2),
            np.full((n, 3), step, np.float32),
            None if gradients else np.zeros(n, np.uint8),
            step=step,
            scale=1.0,
            scalars=[0.1],
        )


def test_rows_train_alike_and_have_no_usage() -> None:
    tables = EmbeddingVariable(TRACKED), EmbeddingVariable(UNTRACKED)
    for table in tables:
        train(table, [1, 2, 3], [2, 3, -4])

    with_usage, without = (table.export() for table in tables)

    assert np.array_equal(without.keys, with_usage.keys)
    assert np.array_equal(without.vectors, with_usage.vectors)
    assert np.array_equal(without.slots, with_usage.slots)
    assert set(with_usage.version.tolist()) == {1, 2}
    assert not without.frequency.any()
    assert not without.version.any()


@pytest.mark.parametrize(
    "ask",
    [
        lambda table: table.frequency(np.array([1])),
        lambda table: table.version(np.array([1])),
        lambda table: table.top(1),
        lambda table: table.top(1, by="version"),
        lambda table: table.frequency_histogram(),
        lambda table: table.evict(1),
        lambda table: table.evict(rows_per_bucket=1),
    ],
)
def test_what_needs_usage_is_refused_and_says_what_to_set(
    ask: Callable[[EmbeddingVariable], object],
) -> None:
    table = EmbeddingVariable(UNTRACKED)
    train(table, [1, 2])

    with pytest.raises(ValueError, match=r"table t does not track usage.*set track_usage: true"):
        ask(table)

    assert len(table) == 2


def test_what_needs_none_works() -> None:
    table = EmbeddingVariable(replace(UNTRACKED, admission=CounterAdmission(min_count=9)))
    train(table, [1, 2])
    train(table, [7], gradients=False)
    heaviest = table.export().keys[0]

    assert table.top(1, by="norm").keys.size == 1
    assert table.frequency_histogram("unadmitted").tolist()[:3] == [0, 0, 1]
    assert table.evict(l2_weight_threshold=1e9).tolist() == [1, 2]
    assert heaviest not in table.export().keys


@pytest.mark.parametrize(
    "rule", [CounterAdmission(min_count=4), BloomAdmission(min_count=4, max_elements=100)]
)
def test_admission_counts_until_a_key_has_a_row(
    rule: CounterAdmission | BloomAdmission,
) -> None:
    table = EmbeddingVariable(replace(UNTRACKED, admission=rule))
    admitted = np.empty(1, np.uint8)

    def admits() -> int:
        table.pull(np.array([5]), np.ones(1, np.uint32), np.empty((1, 3), np.float32), admitted)
        return int(admitted[0])

    seen = [admits()]
    for _ in range(2):
        train(table, [5], gradients=False)
        seen.append(admits())
    train(table, [5])

    assert seen == [0, 0, 1]
    assert (len(table), table.num_unadmitted) == (1, 0)


@pytest.mark.parametrize(
    "rule", [{"steps_to_live": 5}, {"max_rows": 2**20}, {"max_bytes": 2**40}], ids=str
)
def test_eviction_that_needs_usage_can_not_go_without(rule: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="track_usage of table t can't be false"):
        replace(UNTRACKED, eviction=Eviction(**rule))  # type: ignore[arg-type]

    assert replace(UNTRACKED, eviction=Eviction(l2_weight_threshold=0.5)).eviction is not None


def test_a_table_that_others_ask_for_frequencies_must_have_them() -> None:
    asking = TableSpec(name="asking", dim=3, admission=FrequencyAdmission(table="t", min_count=2))

    make_variables([TRACKED, asking])
    with pytest.raises(ValueError, match=r"table t does not track usage.*of table asking"):
        EmbeddingVariable(asking, base=EmbeddingVariable(UNTRACKED))
    with pytest.raises(ValueError, match=r"table t does not track usage.*of table asking"):
        make_variables([UNTRACKED, asking])


def test_freed_rows_are_used_again_and_take_nothing_more() -> None:
    table = EmbeddingVariable(UNTRACKED)
    train(table, list(range(100)))
    before = table.memory()

    table.evict(l2_weight_threshold=1e9)
    train(table, list(range(200, 300)))
    after = table.memory()

    assert sorted(table.export().keys.tolist()) == list(range(200, 300))
    assert before["rows"] == after["rows"] == 100 * 24
    assert before == after
    assert before["metadata"] == 0


def test_columns_have_no_usage_and_come_back() -> None:
    table, copy = EmbeddingVariable(UNTRACKED), EmbeddingVariable(UNTRACKED)
    train(table, [1, 2, 3])

    columns = table.export_arrow()
    copy.import_arrow(columns)

    assert columns.schema == row_schema(UNTRACKED)
    assert columns.column_names == ["key", "vector", "slot_accumulator"]
    assert copy.export_arrow() == columns


def test_rows_move_between_tables_with_and_without() -> None:
    tracked, untracked = EmbeddingVariable(TRACKED), EmbeddingVariable(UNTRACKED)
    train(tracked, [1, 2], [2])

    untracked.import_rows(tracked.export())
    tracked.import_rows(untracked.export())

    entries = tracked.export()
    assert tracked.frequency(entries.keys).tolist() == [0, 0]
    assert np.array_equal(entries.vectors, untracked.export().vectors)
