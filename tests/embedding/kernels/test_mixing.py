import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import NUM_BUCKETS, buckets_of, mix64, mix_text, unmix64


def test_the_mix_of_a_key_is_the_first_output_of_splitmix64_seeded_with_it():
    # Published outputs of the reference generator.
    assert int(mix64(np.uint64(0))) == 0xE220A8397B1DCDAF
    assert int(mix64(np.uint64(1234567))) == 6457827717110365317


def test_the_bucket_is_the_top_12_bits_of_the_mix():
    keys = np.array([0, 1234567, -1, 2**63 - 1, -(2**63)], np.int64)

    buckets = buckets_of(keys)

    assert buckets[0] == 0xE22
    assert buckets.tolist() == [int(mix64(np.uint64(k & (2**64 - 1)))) >> 52 for k in keys.tolist()]
    assert buckets.max() < NUM_BUCKETS


def test_names_and_seeds_give_different_mixes():
    mixes = {
        mix_text(name, seed) for name in ("", "a", "b", "ab", "a\0", "C1" * 9) for seed in (0, 1)
    }

    assert len(mixes) == 12


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))
def test_the_mix_can_be_undone(value):
    assert unmix64(np.uint64(mix64(np.uint64(value)))) == value
    assert mix64(np.uint64(unmix64(np.uint64(value)))) == value
