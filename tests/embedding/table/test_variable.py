"""What a table promises: pure pulls, admission, eviction, versions, refusals."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec, step_scalars
from embedding.kernels.mixing import buckets_of
from embedding.spec.admission import CounterAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.optimizers import Adagrad, AdamAsync, Sgd

DIM = 3


def table(*, min_count=None, initial=1.0, optimizer=None, **fields):
    admission = None if min_count is None else CounterAdmission(min_count=min_count)
    return EmbeddingVariable(
        TableSpec(
            name="t",
            dim=DIM,
            initializer=Constant(value=initial),
            optimizer=optimizer or Sgd(),
            admission=admission,
            **fields,
        )
    )


def pull(variable, keys, counts=None):
    keys = np.asarray(keys, np.int64)
    values = np.full((len(keys), variable.spec.dim), np.nan, np.float32)
    admitted = np.full(len(keys), 9, np.uint8)
    variable.pull(keys, None if counts is None else np.array(counts, np.uint32), values, admitted)
    return values, admitted


def apply(variable, keys, *, counts=None, has_gradient=None, gradient=2.0, step=0, lr=0.1):
    keys = np.asarray(keys, np.int64)
    variable.apply(
        keys,
        np.ones(len(keys), np.int64) if counts is None else np.array(counts, np.int64),
        np.full((len(keys), variable.spec.dim), gradient, np.float32),
        None if has_gradient is None else np.array(has_gradient, np.uint8),
        step=step,
        scale=1.0,
        scalars=step_scalars(variable.spec.optimizer, learning_rate=lr, step=step),
    )


def train(variable, batch, *, step):
    """Pull a batch and apply it with gradients for the keys that were admitted."""
    keys, counts = np.unique(np.asarray(batch, np.int64), return_counts=True)
    values, admitted = pull(variable, keys, counts)
    apply(variable, keys, counts=counts, has_gradient=admitted, step=step)
    return dict(zip(keys.tolist(), values[:, 0].tolist(), strict=True))


def state(variable):
    """Everything that a table holds, as plain values."""
    rows, counters = variable.export(), variable.export_counters()
    columns = [getattr(rows, field.name).tolist() for field in dataclasses.fields(TableEntries)]
    return columns, counters.keys.tolist(), counters.frequency.tolist(), counters.version.tolist()


# Pull --------------------------------------------------------------------------------------------


def test_a_pull_changes_nothing():
    variable = table(min_count=2)
    train(variable, [1, 1, 2, 3, 3], step=0)
    before, memory = state(variable), variable.memory()

    for counts in (None, [1, 1, 5, 1000, 1]):
        pull(variable, [1, 2, 3, 99, -1], counts)

    assert state(variable) == before
    assert variable.memory() == memory


def test_a_pull_may_repeat_keys_and_reads_rows_where_there_are_any():
    variable = table()
    apply(variable, [7])

    values, admitted = pull(variable, [7, 8, 7, 7])

    assert values[:, 0] == pytest.approx([0.8, 1.0, 0.8, 0.8])
    assert admitted.tolist() == [1, 1, 1, 1]


def test_an_unknown_key_without_admission_rule_pulls_its_initial_value_even_at_evaluation():
    values, admitted = pull(table(initial=0.25, default_value=9.0), [1, -1])

    assert (values == 0.25).all()
    assert admitted.tolist() == [1, 1]


def test_a_key_that_is_not_admitted_pulls_the_default_value():
    variable = table(min_count=3, initial=0.0, default_value=0.2)

    seen = [train(variable, [1], step=step)[1] for step in range(3)]

    assert seen == pytest.approx([0.2, 0.2, 0.0])


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 1000])
def test_batches_of_any_size_are_read_whole(size):
    variable = table()
    apply(variable, np.arange(0, 1000, 2))

    values, admitted = pull(variable, np.arange(size))

    assert np.array_equal(values[::2], np.full_like(values[::2], 0.8))
    assert np.array_equal(values[1::2], np.ones_like(values[1::2]))
    assert admitted.tolist() == [1] * size


def test_threads_may_pull_at_once():
    variable = table(min_count=2)
    apply(variable, np.arange(0, 30_000, 2), has_gradient=np.arange(15_000) % 2)
    keys, counts = np.arange(30_000), np.arange(30_000) % 3
    alone = pull(variable, keys, counts)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda _: pull(variable, keys, counts), range(24)))

    for values, admitted in together:
        assert np.array_equal(values, alone[0])
        assert np.array_equal(admitted, alone[1])


# Admission ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_the_occurrence_that_reaches_min_count_is_admitted_in_its_own_batch(min_count):
    variable = table(min_count=min_count)

    for seen_before in range(min_count):
        _, admitted = pull(variable, [4], [1])
        assert admitted[0] == (seen_before + 1 >= min_count)
        train(variable, [4], step=seen_before)

    assert variable.frequency(np.array([4])).tolist() == [min_count]
    assert (len(variable), variable.num_unadmitted) == (1, 0)


def test_occurrences_within_one_batch_count():
    variable = table(min_count=3)

    _, admitted = pull(variable, [1, 2, 3], [2, 3, 4])

    assert admitted.tolist() == [0, 1, 1]


def test_an_evaluation_admits_no_key_that_a_batch_has_not_admitted():
    variable = table(min_count=2)
    apply(variable, [1, 2], counts=[1, 5], has_gradient=[0, 0])

    _, admitted = pull(variable, [1, 2, 3])

    assert admitted.tolist() == [0, 1, 0]


def test_repeated_batches_admit_as_the_counter_filter_does():
    variable = table(min_count=3)
    batch = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4]

    first = train(variable, batch, step=0)
    second = train(variable, batch, step=1)
    third = train(variable, batch, step=2)

    # Counts of the batch itself included: 1 and 2 at once, 3 in the second, 4 in the third batch.
    assert first == pytest.approx({1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0})
    assert second == pytest.approx({1: 0.8, 2: 0.8, 3: 1.0, 4: 0.0})
    assert third == pytest.approx({1: 0.6, 2: 0.6, 3: 0.8, 4: 1.0})


def test_a_row_is_created_only_when_a_gradient_arrives():
    variable = table(min_count=2)
    apply(variable, [1, 2], counts=[9, 1], has_gradient=[0, 0], step=3)
    assert (len(variable), variable.num_unadmitted) == (0, 2)

    apply(variable, [1], counts=[4], has_gradient=[1], step=5)

    assert (len(variable), variable.num_unadmitted) == (1, 1)
    keys = np.array([1, 2, 3])
    assert variable.frequency(keys).tolist() == [13, 1, 0]
    assert variable.version(keys).tolist() == [5, 3, -1]
    assert pull(variable, [1])[0][0] == pytest.approx([0.8] * DIM)


def test_without_admission_rule_a_key_without_gradient_leaves_no_trace():
    variable = table()

    apply(variable, [1], has_gradient=[0])

    assert (len(variable), variable.num_unadmitted) == (0, 0)


def test_a_row_without_gradient_is_counted_and_versioned_but_not_updated():
    variable = table(optimizer=Adagrad(initial_accumulator=0.5))
    apply(variable, [1], step=0)
    before = variable.export()

    apply(variable, [1], counts=[6], has_gradient=[0], gradient=np.nan, step=4)

    after = variable.export()
    assert np.array_equal(after.vectors, before.vectors)
    assert np.array_equal(after.slots, before.slots)
    assert (after.frequency.tolist(), after.version.tolist()) == ([7], [4])


def test_frequencies_add_up_occurrences_and_versions_name_the_last_step():
    variable = table()

    for step in range(2):
        train(variable, [1, 1, 1, 2, 2, 3], step=step)

    keys = np.array([1, 2, 3])
    assert variable.frequency(keys).tolist() == [6, 4, 2]
    assert variable.version(keys).tolist() == [1, 1, 1]


def test_a_key_repeated_against_the_contract_still_gets_one_row():
    variable = table()

    apply(variable, [5, 6, 5], counts=[1, 1, 2])

    assert variable.export().keys.tolist() == sorted(
        [5, 6], key=lambda k: buckets_of(np.array([k]))
    )
    assert variable.frequency(np.array([5])).tolist() == [3]


@pytest.mark.parametrize("dim", [1, 16, 300, 4096])
def test_rows_of_any_width_are_kept_whole(dim):
    spec = TableSpec(name="t", dim=dim, initializer=Constant(value=1.0), optimizer=AdamAsync())
    variable = EmbeddingVariable(spec)

    apply(variable, np.arange(10), lr=0.1)

    values, _ = pull(variable, np.arange(11))
    assert values[:10] == pytest.approx(np.full((10, dim), 0.9), abs=1e-6)
    assert (values[10] == 1).all()
    slots = variable.export().slots
    assert slots[:, :dim] == pytest.approx(np.full((10, dim), 0.2), rel=1e-6)
    assert slots[:, dim:] == pytest.approx(np.full((10, dim), 0.004), rel=1e-5)


# Eviction ----------------------------------------------------------------------------------------


def test_eviction_removes_exactly_what_is_older():
    variable = table()
    for step in range(5):
        apply(variable, [step, -step - 10], step=step)

    evicted = variable.evict(3)

    assert evicted.tolist() == [-12, -11, -10, 0, 1, 2]
    assert variable.version(np.array([2, 3, 4])).tolist() == [-1, 3, 4]
    assert variable.num_evicted == 6


def test_counters_expire_with_rows_and_filters_work_again_afterwards():
    # Keys 1..7 by batch, time to live 2: frequencies and versions of DeepRec's own check.
    variable = table(min_count=3)
    for step, batch in enumerate([[1, 2, 3], [1, 3, 5], [1, 5, 7]]):
        train(variable, batch, step=step)
    keys = np.arange(1, 8)
    assert variable.frequency(keys).tolist() == [3, 1, 2, 0, 2, 0, 1]
    assert variable.version(keys).tolist() == [2, 0, 1, -1, 2, -1, 2]

    evicted = variable.evict(1)

    assert evicted.tolist() == [2]
    assert variable.num_unadmitted == 3


def test_a_returning_key_starts_anew():
    variable = table(min_count=2, optimizer=AdamAsync())
    train(variable, [1, 1], step=0)
    fresh = variable.export()
    train(variable, [1, 1], step=1)
    variable.evict(2)

    _, admitted = pull(variable, [1], [1])
    train(variable, [1, 1], step=0)

    assert admitted.tolist() == [0]
    again = variable.export()
    assert np.array_equal(again.vectors, fresh.vectors)
    assert np.array_equal(again.slots, fresh.slots)
    assert again.frequency.tolist() == [2]


def test_rows_freed_by_eviction_are_used_again():
    variable = table()
    apply(variable, np.arange(5000), step=0)
    taken = variable.memory()

    for step in range(1, 4):
        assert len(variable.evict(step)) == 5000
        apply(variable, np.arange(5000) + 5000 * step, step=step)

    assert variable.memory()["rows"] == taken["rows"]
    assert variable.memory()["metadata"] == taken["metadata"]


# Export and import -------------------------------------------------------------------------------


def test_an_export_is_sorted_by_bucket_and_key_and_split_by_buckets():
    variable = table(min_count=2)
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 3000)
    apply(variable, keys, has_gradient=np.arange(3000) % 2)

    whole = variable.export()
    parts = [variable.export((first, first + 1024)) for first in range(0, 4096, 1024)]

    order = np.lexsort((whole.keys, buckets_of(whole.keys)))
    assert order.tolist() == list(range(1500))
    assert np.concatenate([part.keys for part in parts]).tolist() == whole.keys.tolist()
    counters = variable.export_counters((0, 4096)).keys
    assert sorted([*whole.keys.tolist(), *counters.tolist()]) == sorted(keys.tolist())


def test_an_import_restores_rows_slots_and_counters_and_training_goes_on_alike():
    variable, restored = (table(min_count=2, optimizer=AdamAsync()) for _ in range(2))
    for step in range(3):
        train(variable, np.arange(step, 300, step + 1).repeat(step + 1), step=step)

    restored.import_rows(variable.export())
    restored.import_counters(variable.export_counters())

    assert state(restored) == state(variable)
    for side in (variable, restored):
        train(side, np.arange(400), step=3)
    assert state(restored) == state(variable)


def test_the_last_import_decides_whether_a_key_has_a_row():
    variable = table(min_count=2)
    one = np.array([1])
    row = TableEntries(
        one, one * 5, one * 6, np.full((1, DIM), 7, np.float32), np.empty((1, 0), "f4")
    )
    counter = CounterEntries(one, one * 8, one * 9)

    variable.import_rows(row)
    variable.import_counters(counter)
    assert (len(variable), variable.num_unadmitted, variable.frequency(one)[0]) == (0, 1, 8)
    variable.import_rows(row)
    assert (len(variable), variable.num_unadmitted, variable.frequency(one)[0]) == (1, 0, 5)


# Memory ------------------------------------------------------------------------------------------


def test_memory_adds_up_what_rows_and_counters_take():
    variable = table(min_count=2, optimizer=Adagrad())
    apply(variable, np.arange(1000), has_gradient=np.arange(1000) < 600)

    memory = variable.memory()

    assert memory["rows"] == 600 * DIM * 2 * 4
    assert memory["metadata"] == 600 * 8
    assert memory["keys"] == 600 * 9
    assert memory["counters"] >= 400 * 41
    assert memory["total"] == sum(
        memory[part] for part in ("index", "keys", "rows", "metadata", "counters")
    )


@pytest.mark.parametrize("rows", [157_286, 157_287, 200_000, 314_572])
def test_a_table_takes_at_most_two_fifths_more_than_its_payload(rows):
    """At dim 16 with an Adagrad slot, just before and after the index begins to double."""
    variable = EmbeddingVariable(TableSpec(name="t", dim=16, optimizer=Adagrad()))
    numbers = np.arange(rows)
    vectors = np.zeros((rows, 16), np.float32)
    variable.import_rows(TableEntries(numbers, numbers, numbers, vectors, vectors))

    payload = 8 + 4 * 16 + 4 * 16 + 8 + 8
    assert variable.memory()["total"] <= 1.4 * payload * rows
