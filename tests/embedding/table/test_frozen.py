"""Frozen tables: whatever happens while one is read, it gives the table of its moment."""

import itertools

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.optimizers import Adagrad
from embedding.table.bloom import BloomBlocks, BloomSize

DIM = 3

a_key = st.integers(-5, 20) | st.sampled_from([2**63 - 1, -(2**63)])
some_keys = st.lists(a_key, max_size=12, unique=True)


def held(table):
    """All that a table holds, as plain values."""
    rows, counters, blocks = table.export(), table.export_counters(), table.export_bloom()
    of_rows = rows.keys, rows.frequency, rows.version, rows.vectors, rows.slots
    of_counters = counters.keys, counters.frequency, counters.version
    written = blocks.counters.any(axis=1)
    of_blocks = blocks.buckets[written], blocks.counters[written]
    return [
        [column.tolist() for column in columns] for columns in (of_rows, of_counters, of_blocks)
    ]


class FrozenTableMachine(RuleBasedStateMachine):
    """A table goes on while frozen ones are read; `restored` is made of nothing but what they gave.

    `expected` is what the table held when it was frozen.
    """

    @initialize(
        admission=st.sampled_from(
            [
                None,
                CounterAdmission(min_count=3),
                BloomAdmission(min_count=3, max_elements=1, false_positive_probability=0.3),
            ]
        ),
        value_dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
        track_usage=st.booleans(),
    )
    def start(self, admission, value_dtype, track_usage):
        self.spec = TableSpec(
            name="frozen",
            dim=DIM,
            optimizer=Adagrad(),
            admission=admission,
            value_dtype=value_dtype,
            track_usage=track_usage,
        )
        self.table = EmbeddingVariable(self.spec)
        self.restored = EmbeddingVariable(self.spec)
        self.frozen = self.expected = None
        self.step, self.next_key = 1, 10**6

    # The table goes on ------------------------------------------------------------------------

    @rule(keys=some_keys, data=st.data())
    def apply(self, keys, data):
        flags = data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))
        self.apply_keys(np.array(keys, np.int64), np.array(flags, np.uint8))

    @rule(size=st.integers(1, 300), with_gradient=st.booleans())
    def grow(self, size, with_gradient):
        keys = np.arange(self.next_key, self.next_key + size)
        self.next_key += size
        self.apply_keys(keys, np.full(size, with_gradient, np.uint8))

    def apply_keys(self, keys, flags):
        gradients = np.random.default_rng(self.step).random((keys.size, DIM), np.float32)
        counts = np.full(keys.size, 1 + self.step % 3)
        self.table.apply(keys, counts, gradients, flags, step=self.step, scale=0.5, scalars=[0.1])
        self.step += 1

    @rule(age=st.integers(0, 6), threshold=st.sampled_from([0.0, 1e-4, 1.0]))
    def evict(self, age, threshold):
        min_version = self.step - age if self.spec.track_usage else 0
        self.table.evict(min_version, l2_weight_threshold=threshold)

    @precondition(lambda self: self.spec.track_usage)
    @rule(quota=st.integers(1, 2))
    def evict_beyond_a_quota(self, quota):
        self.table.evict(rows_per_bucket=quota)

    @rule(keys=st.lists(a_key, max_size=12))
    def remove(self, keys):
        self.table.remove(np.array(keys, np.int64))
        (rows, *_), (counters, *_), _ = held(self.table)
        assert not set(keys) & {*rows, *counters}

    @rule(keys=some_keys, version=st.integers(0, 50))
    def import_rows(self, keys, version):
        self.table.import_rows(rows_of(keys, version))

    @rule(keys=some_keys, frequency=st.integers(0, 9))
    def import_counters(self, keys, frequency):
        self.table.import_counters(counters_of(keys, frequency))

    @precondition(lambda self: isinstance(self.spec.admission, BloomAdmission))
    @rule(keys=some_keys)
    def import_bloom(self, keys):
        other = EmbeddingVariable(self.spec)
        other.import_counters(counters_of(keys, 5))
        self.table.import_bloom(other.export_bloom())

    # And is frozen ----------------------------------------------------------------------------

    @rule(changed_only=st.booleans(), give_up=st.booleans(), most=st.sampled_from([1, 7, 1000]))
    def freeze(self, changed_only, give_up, most):
        if self.frozen is not None and not give_up:
            self.finish()
        lost = self.frozen is not None  # what has changed is changed since a cut that none has
        old = self.frozen, self.rest if lost else []
        self.frozen = self.table.freeze(changed_only=changed_only and not lost)
        self.expected = held(self.table)
        self.pieces = []
        self.rest = [self.frozen.rows(most), self.frozen.counters(most), self.frozen.bloom(most)]
        for iterator in old[1]:
            with pytest.raises((RuntimeError, StopIteration)):
                next(iterator)

    @precondition(lambda self: self.frozen is not None)
    @rule(which=st.integers(0, 2), number=st.integers(1, 20))
    def read_some(self, which, number):
        self.pieces.extend(itertools.islice(self.rest[which], number))

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def finish(self):
        for iterator in self.rest:
            self.pieces.extend(iterator)
        frozen, self.frozen = self.frozen, None
        rows, counters, blocks = (
            [piece for piece in self.pieces if isinstance(piece, kind)]
            for kind in (TableEntries, CounterEntries, BloomBlocks)
        )
        assert sum(piece.keys.size for piece in rows) == frozen.num_rows
        assert sum(piece.keys.size for piece in counters) == frozen.num_counters
        assert sum(piece.buckets.size for piece in blocks) == frozen.num_blocks
        if not frozen.changed_only:
            self.restored = EmbeddingVariable(self.spec)
            assert frozen.removed.size == 0
        self.restored.remove(frozen.removed)
        for piece in rows:
            self.restored.import_rows(piece)
        for piece in counters:
            self.restored.import_counters(piece)
        for piece in blocks:
            self.restored.import_bloom(piece)
        assert held(self.restored) == self.expected


def a_table(**fields):
    table = EmbeddingVariable(TableSpec(name="frozen", dim=DIM, optimizer=Adagrad(), **fields))
    table.import_rows(rows_of(range(100), 1))
    return table


def test_a_table_can_be_frozen_again_but_what_was_frozen_before_not_read_on():
    table = a_table()
    first = table.freeze(changed_only=False)
    begun, not_begun = first.rows(10), first.rows(10)
    next(begun)

    second = table.freeze(changed_only=False)

    for iterator in (begun, not_begun):
        with pytest.raises(RuntimeError, match="the table was frozen again"):
            next(iterator)
    assert sum(piece.keys.size for piece in second.rows(10)) == 100


def test_what_is_frozen_costs_memory_only_while_it_is_changed_and_not_yet_read():
    table = a_table()
    before = table.memory()

    frozen = table.freeze(changed_only=False)
    assert table.memory() == before
    table.import_rows(rows_of(range(50), 2))
    assert table.memory()["frozen"] == 50 * (8 + 16 + 4 * 2 * DIM)
    assert {piece.vectors[0, 0] - 1 for piece in frozen.rows(1000)} == {0, 50 * DIM}
    table.import_rows(rows_of(range(100), 3))
    assert table.memory() == before

    again = table.freeze(changed_only=False)
    table.import_rows(rows_of(range(100), 4))
    again.close()
    assert table.memory() == before


def test_removed_keys_are_remembered_once_there_was_a_freeze():
    table = a_table()
    table.remove(np.arange(10))
    assert table.freeze(changed_only=True).removed.tolist() == []

    table.remove(np.array([20, 999, 20, 15]))
    table.import_rows(rows_of([15], 7))
    delta = table.freeze(changed_only=True)

    assert delta.removed.tolist() == [15, 20]
    assert [piece.keys.tolist() for piece in delta.rows(10)] == [[15]]


def test_keys_that_come_and_go_are_remembered_once(monkeypatch):
    monkeypatch.setattr("embedding.table.state._REMOVED_AT_LEAST", 50)
    table = a_table()
    table.freeze(changed_only=False)

    for version in range(20):
        table.remove(np.arange(40))
        table.import_rows(rows_of(range(40), version))

    assert table.memory()["removed"] <= 8 * (2 * 50)
    assert table.freeze(changed_only=True).removed.tolist() == list(range(40))


def test_a_key_that_is_counted_has_a_few_lines_of_a_frozen_filter_saved():
    rule = BloomAdmission(min_count=3, max_elements=2_000_000)
    table = a_table(admission=rule)
    other = np.arange(1000, 1200)
    table.import_counters(counters_of(other, 1))
    before = table.memory()["bloom"]
    blocks = table.export_bloom()

    frozen = table.freeze(changed_only=False)
    table.import_counters(counters_of(other, 2))
    saved = table.memory()["bloom"] - before

    hashes = BloomSize.of(rule).hashes
    assert 0 < saved <= other.size * hashes * 64
    assert saved < blocks.counters.nbytes / 2
    (piece,) = frozen.bloom(1 << 30)
    assert (piece.counters == blocks.counters).all()
    assert (piece.buckets == blocks.buckets).all()
    assert table.memory()["bloom"] == before, "what was saved goes once all is read"
    assert [delta.counters.max() for delta in table.freeze(changed_only=True).bloom(1 << 30)] == [2]


def test_counters_of_another_rule_are_frozen_and_tracked_though_all_of_them_went():
    table = a_table()
    table.import_counters(counters_of([1], 5))
    first = table.freeze(changed_only=False)
    table.remove(np.array([1]))
    table.import_counters(counters_of([2], 5))
    second = table.freeze(changed_only=True)

    with pytest.raises(RuntimeError, match="was frozen again"):
        next(first.counters(10))
    assert [key for piece in second.counters(10) for key in piece.keys.tolist()] == [2]
    assert 1 in second.removed


@pytest.mark.parametrize("most", [0, -1])
def test_empty_pieces_are_refused(most):
    frozen = a_table(admission=CounterAdmission(min_count=2)).freeze(changed_only=False)

    for iterator in (frozen.rows(most), frozen.counters(most)):
        with pytest.raises(ValueError, match="must hold 1 at least"):
            next(iterator)


def rows_of(keys, version):
    n = len(keys)
    vectors = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM) + np.float32(version)
    usage = np.full(n, version + 1), np.full(n, version)
    return TableEntries(np.array(keys, np.int64), *usage, vectors, vectors + 1)


def counters_of(keys, frequency):
    n = len(keys)
    return CounterEntries(np.array(keys, np.int64), np.full(n, frequency), np.full(n, 3))


TestFrozenTablesGiveTheTableOfTheirMoment = FrozenTableMachine.TestCase
TestFrozenTablesGiveTheTableOfTheirMoment.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
