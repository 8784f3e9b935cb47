"""A table with tiers against the same table in memory, bit for bit, through any operations."""

import functools
import itertools
import tempfile

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedding import (
    Adagrad,
    Adam,
    BloomAdmission,
    CounterAdmission,
    EmbeddingVariable,
    Ftrl,
    RowwiseAdagrad,
    Sgd,
    TableEntries,
    TableSpec,
    Tiers,
    step_scalars,
)
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.table.tier_slots import NUM_FREE
from embedding.table.tier_staged import NUM_AHEAD, NUM_STAGED

DIM = 61
MEMORY_BYTES = 1 << 16  # some 50 rows, of vectors and Adam's slots

optimizers = st.sampled_from([Adagrad(), RowwiseAdagrad(), Adam(), Ftrl(), Sgd()])
admissions = st.sampled_from(
    [None, CounterAdmission(min_count=2), BloomAdmission(min_count=2, max_elements=10**4)]
)
ranges = st.tuples(st.integers(-40, 400), st.integers(0, 150)).map(
    lambda r: np.arange(r[0], sum(r))
)


def same(one, other):
    for name in one.__slots__:
        a, b = getattr(one, name), getattr(other, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


class TiersMachine(RuleBasedStateMachine):
    only_dtype = None

    @initialize(
        optimizer=optimizers,
        admission=admissions,
        dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
        policy=st.sampled_from(["frequency", "recency"]),
        track_usage=st.booleans(),
    )
    def start(self, optimizer, admission, dtype, policy, track_usage):
        self.spec = TableSpec(
            name="tiers",
            dim=DIM,
            optimizer=optimizer,
            admission=admission,
            value_dtype=self.only_dtype or dtype,
            track_usage=track_usage,
        )
        self.folder = tempfile.TemporaryDirectory()
        tiers = Tiers(memory_bytes=MEMORY_BYTES, path=self.folder.name, policy=policy)
        self.tables = [
            EmbeddingVariable(self.spec),
            EmbeddingVariable(self.spec, tiers=tiers),
        ]
        self.frozen, self.read = None, ()
        self.step = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def both(self, call):
        return [call(table) for table in self.tables]

    @rule(keys=ranges, count=st.integers(0, 2))
    def pull(self, keys, count):
        found = []
        for table in self.tables:
            values, admitted = np.zeros((keys.size, DIM), np.float32), np.zeros(keys.size, np.uint8)
            counts = np.full(keys.size, count, np.uint32)
            table.pull(keys, counts, values, admitted, step=self.step)
            found.append((values.tobytes(), admitted.tobytes()))
        assert found[0] == found[1]

    @rule(keys=ranges)
    def prefetch(self, keys):
        self.both(lambda table: table.prefetch(keys))

    @rule(keys=ranges, seed=st.integers(0, 99), some=st.booleans())
    def apply(self, keys, seed, some):
        rng = np.random.default_rng(seed)
        keys = rng.permutation(keys)
        gradients = rng.normal(size=(keys.size, DIM)).astype(np.float32)
        flags = (rng.random(keys.size) < 0.7).astype(np.uint8) if some else None
        counts = rng.integers(0, 3, keys.size)
        scalars = step_scalars(self.spec.optimizer, learning_rate=0.1, step=self.step)
        self.both(
            lambda table: table.apply(
                keys, counts, gradients, flags, step=self.step, scale=0.5, scalars=scalars
            )
        )
        self.step += 1

    @rule(keys=ranges)
    def remove(self, keys):
        self.both(lambda table: table.remove(np.concatenate([keys[::2], keys[:3]])))

    @rule(weight=st.sampled_from([0.0, 0.01, 0.5]), life=st.integers(1, 6), most=st.integers(0, 1))
    def evict(self, weight, life, most):
        usage = self.spec.track_usage
        gone = self.both(
            lambda table: table.evict(
                max(self.step - life, 0) if usage else 0,
                l2_weight_threshold=weight,
                rows_per_bucket=most if usage else 0,
            )
        )
        assert gone[0].tolist() == gone[1].tolist()

    @rule(keys=ranges, seed=st.integers(0, 9))
    def import_rows(self, keys, seed):
        rng = np.random.default_rng(seed)
        n, width = keys.size, TableEntries.empty(self.spec).slots.shape[1]
        rows = TableEntries(
            keys=keys,
            frequency=np.ones(n, np.int64),
            version=np.full(n, self.step),
            vectors=rng.normal(size=(n, DIM)).astype(np.float32),
            slots=rng.random((n, width)).astype(np.float32),
        )
        self.both(lambda table: table.import_rows(rows))

    @rule(changed_only=st.booleans())
    def freeze(self, changed_only):
        frozen = self.both(lambda table: table.freeze(changed_only=changed_only))
        assert frozen[0].removed.tolist() == frozen[1].removed.tolist()
        self.frozen = [each.rows(17) for each in frozen]
        self.read = [[TableEntries.empty(self.spec)], [TableEntries.empty(self.spec)]]

    @rule(pieces=st.integers(1, 20))
    def read_frozen(self, pieces):
        # What is saved together differs, as does how many rows are worked on at once.
        for rows, read in zip(self.frozen or (), self.read, strict=False):
            read.extend(itertools.islice(rows, pieces))

    @rule()
    def finish_frozen(self):
        if self.frozen:
            self.read_frozen(10**6)
            one, other = (functools.reduce(TableEntries.joined, read) for read in self.read)
            same(one.take(np.argsort(one.keys)), other.take(np.argsort(other.keys)))
            self.frozen = None

    @rule(own=st.sampled_from([0.5, 1.0]))
    def move_buckets(self, own):
        buckets = np.arange(NUM_BUCKETS) < own * NUM_BUCKETS
        for table in self.tables:
            table.own(buckets)
            for _ in table.drop_others(50):
                pass
        self.frozen = None

    @rule()
    def look(self):
        same(*self.both(lambda table: table.export()))
        same(*self.both(lambda table: table.top(5, by="norm")))

    @invariant()
    def counts_are_right(self):
        if hasattr(self, "tables"):
            figures = self.tables[1].tiers()
            assert figures.memory_rows + figures.disk_rows == len(self.tables[0])
            assert figures.memory_bytes <= MEMORY_BYTES
            self.slots_are_each_of_one_thing()

    def slots_are_each_of_one_thing(self):
        """A slot has a row whose place it is, or a record that a row has, or is free."""
        tiered = self.tables[1].rows.tiered
        slots, staged = tiered.slots, tiered._staged
        owned = np.flatnonzero(slots.owners >= 0)
        assert (slots.places[slots.owners[owned]] == owned + 1).all()
        used = staged.tags != 0
        assert staged.state[NUM_STAGED] == np.count_nonzero(used)
        assert staged.state[NUM_AHEAD] == np.count_nonzero(staged.ahead)
        assert used[staged.ahead != 0].all()
        assert np.isin(-staged.tags[used], slots.places[:1000]).all()
        free = slots.free[: slots.state[NUM_FREE]]
        every = np.concatenate([owned, staged.slots[used], free])
        assert np.sort(every).tolist() == list(range(slots.owners.size))
        assert not slots.pinned.any()


class Int8Machine(TiersMachine):
    only_dtype = "int8"


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
TestTiersOfInt8 = Int8Machine.TestCase
TestTiersOfInt8.settings = settings(TestTiers.settings, max_examples=5)
