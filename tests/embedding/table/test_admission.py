"""Admission by a counting Bloom filter and by chance; the exact counter is in test_variable."""

import itertools
import math

import numpy as np
import pytest

from embedding import CounterEntries, EmbeddingVariable, TableSpec
from embedding.kernels.mixing import buckets_of, mix_text
from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission
from embedding.spec.initial_values import Constant
from embedding.spec.json_form import table_from_json, to_json
from embedding.spec.optimizers import Sgd
from embedding.table.bloom import BloomBlocks, BloomFilter, BloomSize

BITS = [8, 16, 32, 64]


def bloom(min_count=3, max_elements=5, **fields):
    return BloomAdmission(min_count=min_count, max_elements=max_elements, **fields)


def table(admission, *, name="t", seed=0, initial=1.0, default_value=0.0):
    spec = TableSpec(
        name=name,
        dim=2,
        seed=seed,
        initializer=Constant(value=initial),
        optimizer=Sgd(),
        admission=admission,
        default_value=default_value,
    )
    return EmbeddingVariable(spec)


def pull(variable, keys, counts=None, *, step=0):
    keys = np.asarray(keys, np.int64)
    values, admitted = np.empty((len(keys), 2), np.float32), np.empty(len(keys), np.uint8)
    counts = None if counts is None else np.broadcast_to(counts, len(keys)).astype(np.uint32)
    variable.pull(keys, counts, values, admitted, step=step)
    return values, admitted


def train(variable, batch, *, step):
    """Pull a batch and apply gradients of 2 for what was admitted; return values by key."""
    keys, counts = np.unique(np.asarray(batch, np.int64), return_counts=True)
    values, admitted = pull(variable, keys, counts, step=step)
    gradients = np.full((len(keys), 2), 2, np.float32)
    variable.apply(keys, counts, gradients, admitted, step=step, scale=1.0, scalars=[0.1])
    return dict(zip(keys.tolist(), values[:, 0].tolist(), strict=True))


def frequency(variable, *keys):
    return variable.frequency(np.array(keys, np.int64)).tolist()


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "p", "counters", "hashes"),
    [
        # ceil(|ln p| / ln(2)^2 n) for n keys of a bucket, ceil(|log2 p|); then whole segments.
        (1, 0.01, 70, 7),  # 2 keys: at least 64 counters
        (4096 * 100, 0.01, 1260, 7),  # 100 + 30 + 1 keys: 1255.6
        (4096 * 100, 0.001, 1890, 10),  # 1883.4
        (4096 * 10_000, 0.01, 98_742, 7),  # 10,301 keys: 98,735.7
    ],
)
def test_sizes_follow_the_formulas_with_slack_for_a_bucket(n, p, counters, hashes):
    rule = bloom(max_elements=n, false_positive_probability=p)

    assert BloomSize.of(rule) == BloomSize(counters, hashes)


@pytest.mark.parametrize(
    ("n", "p"), [(1000, 0.01), (30_000, 0.05), (100_000, 0.001), (1_000_000, 0.01)]
)
def test_few_keys_that_were_never_seen_are_taken_for_known(n, p):
    check_false_positives(n, p)


@pytest.mark.slow
def test_few_of_ten_million_are_taken_for_known():
    check_false_positives(10_000_000, 0.01)


def check_false_positives(n, p):
    rng = np.random.default_rng(n)
    keys = np.unique(rng.integers(-(2**63), 2**63 - 1, n + 200_000))
    rng.shuffle(keys)
    seen, unseen = keys[:n], keys[n:]
    filter_ = BloomFilter(bloom(max_elements=n, false_positive_probability=p))
    filter_.add(seen, np.ones_like(seen))

    false = np.count_nonzero(filter_.count(unseen))

    assert filter_.count(seen).min() >= 1, "no count is ever too low"
    assert false / unseen.size <= p + 4 * math.sqrt(p / unseen.size)
    if n >= 1_000_000:  # where the slack and 64 counters no longer make it much better
        assert false / unseen.size > p / 10


def test_consecutive_keys_are_spread_as_well_as_random_ones():
    filter_ = BloomFilter(bloom(max_elements=100_000))
    seen, unseen = np.arange(100_000), np.arange(100_000, 300_000)
    filter_.add(seen, np.ones_like(seen))

    assert np.count_nonzero(filter_.count(unseen)) / unseen.size <= 0.011


def test_a_filter_for_a_larger_or_finer_purpose_takes_more_memory():
    def size(**fields):
        variable = table(bloom(**{"max_elements": 10**6, **fields}))
        train(variable, np.arange(5000), step=0)
        return variable.memory()["bloom"]

    usual = size()
    assert size(max_elements=2 * 10**6) > 1.8 * usual
    assert size(false_positive_probability=0.0001) > 1.9 * usual
    assert [size(counter_bits=bits) / usual for bits in BITS] == [1, 2, 4, 8]


# The rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_a_bloom_filter_admits_by_the_rule_of_the_exact_counter(bits):
    batch = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4]
    by_bloom = table(bloom(max_elements=1000, counter_bits=bits))
    by_counter = table(CounterAdmission(min_count=3))

    for step in range(4):
        assert train(by_bloom, batch, step=step) == train(by_counter, batch, step=step)
    assert frequency(by_bloom, 1, 2, 3, 4, 5) == [16, 12, 8, 4, 0]
    assert frequency(by_bloom, 1, 2, 3, 4, 5) == frequency(by_counter, 1, 2, 3, 4, 5)


def test_the_occurrence_that_reaches_min_count_is_admitted():
    variable = table(bloom(min_count=3), initial=0.0, default_value=0.2)

    assert [train(variable, [1], step=s)[1] for s in range(3)] == pytest.approx([0.2, 0.2, 0.0])


@pytest.mark.parametrize("min_count", [1, 2, 5, 255])
def test_min_count_is_what_the_count_must_reach(min_count):
    variable = table(bloom(min_count=min_count))

    bits = [pull(variable, [7], [n])[1][0] for n in (0, min_count - 1, min_count)]

    assert bits == [0, 0, 1]


def test_unadmitted_keys_cost_no_memory_and_are_not_listed():
    variable = table(bloom(min_count=100, max_elements=10))
    train(variable, np.arange(100_000), step=0)
    memory = variable.memory()

    for step in range(1, 3):
        train(variable, np.arange(100_000) + 100_000 * step, step=step)

    assert variable.memory()["total"] == memory["total"]
    assert (len(variable), variable.num_unadmitted) == (0, 0)
    assert len(variable.export_counters().keys) == 0


def test_rows_made_in_one_step_do_not_see_what_it_brings_for_others():
    """Full filters, where every key meets every other: the order of keys must not matter."""
    keys = np.random.default_rng(0).integers(0, 2**40, 100_000)
    keys = np.unique(keys[buckets_of(keys) < 8])[:150]
    assert len(keys) == 150
    digests = []
    for direction in (1, -1):
        variable = table(bloom(min_count=2, max_elements=1))
        for step, some in enumerate((keys[::2][::direction], keys[::direction])):
            n = len(some)
            flags = (some % 3 > 0).astype(np.uint8)
            gradients = np.ones((n, 2), np.float32)
            variable.apply(
                some, np.ones(n, np.int64), gradients, flags, step=step, scale=1.0, scalars=[0.1]
            )
        rows, blocks = variable.export(), variable.export_bloom()
        digests.append((rows.frequency.tolist(), blocks.counters.tolist()))

    assert digests[0] == digests[1]


def test_a_key_that_returns_after_its_eviction_is_admitted_at_once():
    variable = table(bloom(min_count=3))
    train(variable, [1, 1, 1, 1], step=0)
    assert variable.evict(1).tolist() == [1]

    again = train(variable, [1], step=1)

    assert again == {1: 1.0}, "with its initial value"
    assert frequency(variable, 1) == [5], "as often as the filter saw it, and this once"


def test_once_a_key_has_a_row_the_filter_counts_it_no_more():
    variable = table(bloom(min_count=3))
    for step in range(10):
        train(variable, [1], step=step)
    assert frequency(variable, 1) == [10]

    variable.evict(10)

    assert frequency(variable, 1) == [3]


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (16, 65_535), (32, 2**32 - 1)])
def test_counts_saturate_and_never_wrap(bits, largest):
    variable = table(bloom(min_count=255, counter_bits=bits))
    keys, none = np.array([5]), np.zeros(1, np.uint8)
    for step, count in enumerate((largest - 1, 1, 1, 2**62, 2**63 - 1)):
        variable.apply(
            keys, np.array([count]), np.ones((1, 2), np.float32), none,
            step=step, scale=1.0, scalars=[0.1],
        )  # fmt: skip

    assert frequency(variable, 5) == [largest]


def test_the_widest_counters_saturate_at_the_largest_frequency():
    filter_ = BloomFilter(bloom(counter_bits=64))
    for _ in range(3):
        filter_.add(np.array([5]), np.array([2**62]))

    assert filter_.count(np.array([5])).tolist() == [2**63 - 1]


# Export and import -------------------------------------------------------------------------------


def counted(rule, seed=1):
    variable = table(rule)
    rng = np.random.default_rng(seed)
    for step in range(3):
        train(variable, rng.zipf(1.3, 3000) % 100_000, step=step)
    return variable


def test_blocks_come_back_by_any_parts_and_training_goes_on_alike():
    variable, again = counted(bloom(max_elements=1000)), table(bloom(max_elements=1000))

    again.import_rows(variable.export())
    for part in ((3000, 4096), (0, 5), (5, 3000)):
        again.import_bloom(variable.export_bloom(part))

    for side in (variable, again):
        train(side, np.arange(20_000), step=9)
    assert np.array_equal(variable.export().frequency, again.export().frequency)
    a, b = variable.export_bloom(), again.export_bloom()
    assert np.array_equal(a.buckets, b.buckets)
    assert np.array_equal(a.counters, b.counters)
    assert variable.memory() == again.memory()


@pytest.mark.parametrize("bits", BITS)
def test_blocks_may_come_from_counters_of_another_width(bits):
    wide = table(bloom(counter_bits=64))
    wide.import_counters(CounterEntries(np.array([1, 2]), np.array([3, 2**40]), np.zeros(2, int)))
    other = table(bloom(counter_bits=bits))

    other.import_bloom(wide.export_bloom())

    assert frequency(other, 1, 2, 3) == [3, min(2**bits - 1, 2**40), 0]


def test_counters_of_the_exact_rule_can_be_taken_over():
    variable = table(bloom(min_count=3))
    counters = CounterEntries(np.array([1, 2]), np.array([2, 1]), np.array([0, 0]))

    variable.import_counters(counters)
    variable.import_counters(counters)

    assert frequency(variable, 1, 2) == [2, 1]
    assert pull(variable, [1, 2], 1)[1].tolist() == [1, 0]


def test_blocks_of_another_size_are_refused():
    variable = table(bloom(max_elements=10**6))
    blocks = table(bloom(max_elements=1)).export_bloom()

    with pytest.raises(ValueError, match="Bloom blocks must be unsigned"):
        variable.import_bloom(blocks)
    with pytest.raises(ValueError, match="has no Bloom filter"):
        table(None).import_bloom(blocks)
    width = variable.bloom_block(0).size
    with pytest.raises(ValueError, match="of buckets 0 to 4095"):
        variable.import_bloom(BloomBlocks(np.array([4096]), np.zeros((1, width), np.uint8)))


# Chance ------------------------------------------------------------------------------------------


def test_a_share_of_the_keys_is_admitted_with_each_occurrence():
    variable = table(ProbabilisticAdmission(probability=0.2))
    keys = np.arange(100_000)

    for count in (1, 2, 5):
        _, admitted = pull(variable, keys, count, step=4)
        expected = 1 - 0.8**count
        assert admitted.mean() == pytest.approx(
            expected, abs=5 * math.sqrt(expected * (1 - expected) / keys.size)
        )


def test_whoever_is_admitted_once_is_admitted_with_more_occurrences():
    variable = table(ProbabilisticAdmission(probability=0.2))
    bits = [pull(variable, np.arange(1000), count)[1] for count in (0, 1, 2, 3, 100)]

    assert not bits[0].any(), "an evaluation admits no one"
    assert all((less <= more).all() for less, more in itertools.pairwise(bits))


def test_draws_equal_those_of_a_twin():
    variable = table(ProbabilisticAdmission(probability=0.3), name="t", seed=5)
    keys = np.array([0, 1, -1, 2**63 - 1, -(2**63), *range(500)])

    _, admitted = pull(variable, keys, 2, step=7)

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
        return z ^ z >> 31

    seed = mix_text("t/admission", 5)
    u = [(mix((mix(k % 2**64 ^ seed) + 7) % 2**64) >> 11) / 2**53 for k in keys.tolist()]
    assert admitted.tolist() == [int(x >= 0.7 * 0.7) for x in u]


def test_seed_name_step_and_key_all_matter():
    rule, keys = ProbabilisticAdmission(probability=0.5), np.arange(400)
    plain = pull(table(rule), keys, 1)[1]

    for other in (
        pull(table(rule, seed=1), keys, 1)[1],
        pull(table(rule, name="u"), keys, 1)[1],
        pull(table(rule), keys, 1, step=1)[1],
        pull(table(rule), keys + 400, 1)[1],
    ):
        assert 100 < np.count_nonzero(plain != other) < 300


def test_an_apply_makes_rows_for_what_its_pull_admitted_and_counts_no_one_else():
    variable = table(ProbabilisticAdmission(probability=0.25), default_value=-1.0)
    keys = np.arange(2000)
    values, admitted = pull(variable, keys, 1, step=3)

    train(variable, keys, step=3)

    assert np.array_equal(values[:, 0] == 1.0, admitted == 1)
    assert np.array_equal(values[:, 0] == -1.0, admitted == 0)
    assert sorted(variable.export().keys.tolist()) == keys[admitted == 1].tolist()
    assert variable.num_unadmitted == 0
    assert set(frequency(variable, *keys[admitted == 0])) == {0}


def test_a_certain_admission_admits_everyone_who_occurs():
    variable = table(ProbabilisticAdmission(probability=1.0), default_value=-1.0)

    assert pull(variable, np.arange(100), 1)[1].all()
    assert not pull(variable, np.arange(100))[1].any()


# Specs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bloom(min_count=0), r"min_count must be in \[1, 255\]"),
        (lambda: bloom(min_count=256), r"min_count must be in \[1, 255\] with counter_bits 8"),
        (lambda: bloom(min_count=65_536, counter_bits=16), "min_count must be"),
        (lambda: bloom(max_elements=0), "max_elements must be"),
        (lambda: bloom(false_positive_probability=0.0), "false_positive_probability must be"),
        (lambda: bloom(false_positive_probability=1.0), "false_positive_probability must be"),
        (lambda: bloom(false_positive_probability=-1.0), "false_positive_probability must be"),
        (lambda: bloom(counter_bits=12), "counter_bits must be 8, 16, 32 or 64"),
        (lambda: ProbabilisticAdmission(probability=0.0), "probability must be"),
        (lambda: ProbabilisticAdmission(probability=1.1), "probability must be"),
        (lambda: ProbabilisticAdmission(probability=float("nan")), "probability must be"),
    ],
)
def test_a_rule_out_of_range_is_refused_by_the_name_of_its_field(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "rule", [CounterAdmission(min_count=2), bloom(), ProbabilisticAdmission(probability=0.5)]
)
def test_a_rule_comes_back_from_json(rule):
    spec = TableSpec(name="t", dim=1, admission=rule)

    assert table_from_json(to_json(spec)) == spec


def test_address_space_that_can_not_be_had_is_named():
    rule = bloom(max_elements=2**40, false_positive_probability=1e-6, counter_bits=64)

    with pytest.raises(MemoryError, match=r"max_elements 1099511627776: .* or lower max_elements"):
        table(rule)
