"""A table against a plain dict, through any sequence of operations."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.kernels.mixing import buckets_of, mix_text
from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission
from embedding.spec.initial_values import Uniform
from embedding.spec.optimizers import Adagrad
from embedding.table.bloom import BloomSize

DIM = 2
LEARNING_RATE = np.float32(0.1)
SCALE = np.float32(0.25)

a_key = st.one_of(
    st.integers(-6, 12), st.sampled_from([2**63 - 1, -(2**63), 2**52, -(2**52), 4096])
)
# Many keys of one bucket, which quotas are about.
ONE_BUCKET = np.flatnonzero(buckets_of(np.arange(60_000)) == 7).tolist()
a_key = a_key | st.sampled_from(ONE_BUCKET)
some_keys = st.lists(a_key, max_size=12)
unique_keys = st.lists(a_key, max_size=12, unique=True)


class TableMachine(RuleBasedStateMachine):
    """The model: rows[key] = [vector, accumulator, frequency, version], counters[key] likewise."""

    @initialize(
        rule=st.sampled_from(
            [
                None,
                CounterAdmission(min_count=1),
                CounterAdmission(min_count=3),
                BloomAdmission(min_count=3, max_elements=1, false_positive_probability=0.3),
                BloomAdmission(min_count=2, max_elements=10**5, counter_bits=32),
                ProbabilisticAdmission(probability=0.4),
            ]
        ),
        track_usage=st.booleans(),
    )
    def start(self, rule, track_usage):
        self.rule = rule
        self.counts = isinstance(rule, CounterAdmission)
        self.largest = 2 ** getattr(rule, "counter_bits", 1) - 1
        self.bloom = {} if isinstance(rule, BloomAdmission) else None
        self.spec = TableSpec(
            name="model",
            dim=DIM,
            initializer=Uniform(scale=1.0),
            optimizer=Adagrad(initial_accumulator=0.5),
            admission=rule,
            default_value=-7.0,
            track_usage=track_usage,
        )
        self.table = EmbeddingVariable(self.spec)
        self.rows, self.counters = {}, {}
        self.step = self.evicted = 0
        self.next_key = 10**6

    def initial(self, key):
        """The initial vector as a table without rows or admission rule has it."""
        empty = EmbeddingVariable(
            TableSpec(name="model", dim=DIM, initializer=self.spec.initializer)
        )
        values = np.empty((1, DIM), np.float32)
        empty.pull(np.array([key]), None, values, np.empty(1, np.uint8))
        return values[0]

    def places(self, key):
        """The counters of a key in a Bloom filter, each a bucket and a number within its block."""
        size, mixed = BloomSize.of(self.rule), mix(key % 2**64)
        segment = size.counters // size.hashes
        for number in range(size.hashes):
            draw = mix((mixed + number) % 2**64) >> 32
            yield mixed >> 52, number * segment + (draw * segment >> 32)

    def frequency(self, key):
        """What is counted of a key that has no row."""
        if self.bloom is None:
            return self.counters.get(key, [0])[0]
        return min(self.bloom.get(place, 0) for place in self.places(key))

    def admits(self, key, count):
        if self.rule is None:
            return True
        if not isinstance(self.rule, ProbabilisticAdmission):
            return self.frequency(key) + count >= self.rule.min_count
        seed = mix_text("model/admission")
        u = (mix((mix(key % 2**64 ^ seed) + self.step) % 2**64) >> 11) / 2**53
        return u >= np.prod([1 - self.rule.probability] * count)

    @rule(keys=some_keys, count=st.integers(0, 4), evaluating=st.booleans())
    def pull(self, keys, count, evaluating):
        values, admitted = np.empty((len(keys), DIM), np.float32), np.empty(len(keys), np.uint8)
        counts = None if evaluating else np.full(len(keys), count, np.uint32)
        self.table.pull(np.array(keys, np.int64), counts, values, admitted, step=self.step)
        for key, value, bit in zip(keys, values, admitted, strict=True):
            if key in self.rows:
                assert (value.tolist(), bit) == (self.rows[key][0].tolist(), 1)
            elif self.admits(key, 0 if evaluating else count):
                assert (value.tolist(), bit) == (self.initial(key).tolist(), 1)
            else:
                assert (value.tolist(), bit) == ([-7.0] * DIM, 0)

    def apply_keys(self, keys, counts, flags):
        gradients = np.arange(1, len(keys) * DIM + 1, dtype=np.float32).reshape(-1, DIM)
        self.table.apply(
            np.array(keys, np.int64),
            np.array(counts, np.int64),
            gradients,
            None if all(flags) else np.array(flags, np.uint8),
            step=self.step,
            scale=float(SCALE),
            scalars=[float(LEARNING_RATE)],
        )
        new = [(key, n) for key, n in zip(keys, counts, strict=True) if key not in self.rows]
        before = {key: self.frequency(key) for key, _ in new}
        for key, count in new if self.bloom is not None else []:
            for place in self.places(key):
                self.bloom[place] = min(self.bloom.get(place, 0) + count, self.largest)
        for key, count, flag, gradient in zip(keys, counts, flags, gradients, strict=True):
            if key not in self.rows and flag:
                frequency = before[key]
                self.counters.pop(key, None)
                accumulator = np.full(DIM, 0.5, np.float32)
                self.rows[key] = [self.initial(key), accumulator, frequency, 0]
            if key in self.rows:
                row = self.rows[key]
                if flag:
                    g = gradient * SCALE
                    row[1] = row[1] + g * g
                    row[0] = row[0] - LEARNING_RATE * g / np.sqrt(row[1])
                row[2:] = [row[2] + count, self.step]
            elif self.counts:
                frequency = self.counters.get(key, [0])[0]
                self.counters[key] = [frequency + count, self.step]
        self.step += 1

    @rule(keys=unique_keys, data=st.data())
    def apply(self, keys, data):
        counts = data.draw(st.lists(st.integers(1, 3), min_size=len(keys), max_size=len(keys)))
        flags = data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))
        self.apply_keys(keys, counts, flags)

    @rule(size=st.integers(1, 300), with_gradient=st.booleans())
    def grow(self, size, with_gradient):
        keys = list(range(self.next_key, self.next_key + size))
        self.next_key += size
        self.apply_keys(keys, [1] * size, [with_gradient] * size)

    @rule(
        age=st.none() | st.integers(0, 6),
        threshold=st.sampled_from([0.0, 0.0, 0.05, 0.2, 1.0]),
        quota=st.integers(0, 3),
        evict_first=st.sampled_from(["least_frequent", "least_recent"]),
    )
    def evict(self, age, threshold, quota, evict_first):
        min_version = 0 if age is None else self.step - age
        if not self.spec.track_usage and (min_version > 0 or quota):
            with pytest.raises(ValueError, match="does not track usage"):
                self.table.evict(min_version, rows_per_bucket=quota)
            return
        gone = {
            key
            for part in (self.rows, self.counters)
            for key in part
            if part[key][-1] < min_version
        }
        gone |= {
            key
            for key, (vector, *_) in self.rows.items()
            if 0.5 * sum(float(x) ** 2 for x in vector) < threshold
        }
        if quota:
            gone |= self.over_quota(self.rows.keys() - gone, quota, evict_first)
        evicted = self.table.evict(
            min_version,
            l2_weight_threshold=threshold,
            rows_per_bucket=quota,
            evict_first=evict_first,
        )
        assert evicted.tolist() == sorted(gone)
        for key in gone:
            self.rows.pop(key, None)
            self.counters.pop(key, None)
        self.evicted += len(gone)
        assert self.table.num_evicted == self.evicted

    def over_quota(self, keys, quota, evict_first):
        buckets = {}
        for key in keys:
            buckets.setdefault(int(buckets_of(np.array([key]))[0]), []).append(key)
        column = 2 if evict_first == "least_frequent" else 3
        gone = set()
        for members in buckets.values():
            members.sort(key=lambda key: (self.rows[key][column], key))
            gone |= set(members[: max(0, len(members) - quota)])
        return gone

    @rule(middle=st.integers(0, 4096))
    def move_to_a_new_table(self, middle):
        moved = EmbeddingVariable(self.spec)
        moved.num_evicted = self.evicted
        for buckets in ((middle, 4096), (0, middle)):
            moved.import_rows(self.table.export(buckets))
            moved.import_counters(self.table.export_counters(buckets))
            if self.bloom is not None:
                moved.import_bloom(self.table.export_bloom(buckets))
        self.table = moved

    @rule(keys=unique_keys, frequency=st.integers(0, 9), version=st.integers(0, 50))
    def import_rows(self, keys, frequency, version):
        n = len(keys)
        vectors = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM)
        full = np.full(n, frequency), np.full(n, version)
        self.table.import_rows(TableEntries(np.array(keys, np.int64), *full, vectors, vectors + 1))
        for key, vector in zip(keys, vectors, strict=True):
            self.counters.pop(key, None)
            self.rows[key] = [vector, vector + 1, frequency, version]

    @rule(keys=unique_keys, frequency=st.integers(0, 9), version=st.integers(0, 50))
    def import_counters(self, keys, frequency, version):
        full = np.full(len(keys), frequency), np.full(len(keys), version)
        self.table.import_counters(CounterEntries(np.array(keys, np.int64), *full))
        for key in keys:
            self.rows.pop(key, None)
            if self.bloom is None:
                self.counters[key] = [frequency, version]
                continue
            for place in self.places(key):
                self.bloom[place] = max(self.bloom.get(place, 0), frequency)

    @invariant()
    def holds_what_the_model_holds(self):
        assert (len(self.table), self.table.num_unadmitted) == (len(self.rows), len(self.counters))
        entries, counters = self.table.export(), self.table.export_counters()
        assert entries.keys.tolist() == in_export_order(self.rows)
        assert counters.keys.tolist() == in_export_order(self.counters)
        for i, key in enumerate(entries.keys.tolist()):
            vector, accumulator, frequency, version = self.rows[key]
            assert np.array_equal(entries.vectors[i], vector)
            assert np.array_equal(entries.slots[i], accumulator)
            usage = (frequency, version) if self.spec.track_usage else (0, 0)
            assert (entries.frequency[i], entries.version[i]) == usage
        for i, key in enumerate(counters.keys.tolist()):
            assert [counters.frequency[i], counters.version[i]] == self.counters[key]
        if not self.spec.track_usage:
            return
        known = {**self.counters, **self.rows}
        asked = np.array([*known, 987654321], np.int64)
        strange = self.frequency(987654321)
        assert self.table.frequency(asked).tolist() == [*(v[-2] for v in known.values()), strange]
        assert self.table.version(asked).tolist() == [*(v[-1] for v in known.values()), -1]

    @invariant()
    def filters_what_the_model_filters(self):
        blocks = self.table.export_bloom()
        found = {
            (bucket, number): count
            for bucket, block in zip(blocks.buckets.tolist(), blocks.counters, strict=True)
            for number, count in enumerate(block.tolist())
            if count
        }
        assert found == {place: count for place, count in (self.bloom or {}).items() if count}


def mix(z):
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
    return z ^ z >> 31


def in_export_order(keys):
    ordered = np.array(list(keys), np.int64)
    return ordered[np.lexsort((ordered, buckets_of(ordered)))].tolist()


TestTableAgreesWithADict = TableMachine.TestCase
TestTableAgreesWithADict.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
