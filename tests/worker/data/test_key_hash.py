import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.kernels.mixing import mix_text
from worker.data.key_hash import hash_strings, key_kind, keys_of

GOLDEN = {
    b"": -6411193824288604561,
    b"a": -8003324499094705385,
    b"68fd1e64": 4124577675871584950,
    "Zürich".encode(): -6236761205559999040,
    "日本語".encode(): 9002844311616818346,
    b"\x00": 3400964856525257824,
    b"\x00\x00": -5581002065636601042,
    b"\xff\xfe": -5284914525925159903,
}

ALPHABET = b"abcdefghijklmnopqrstuvwxyzABCDEFG"
# The hash of the first 0, 1, ..., 33 bytes of the alphabet.
GOLDEN_BY_LENGTH = [
    -6411193824288604561, -8003324499094705385, 7006557095527070145, -3750978703252118877,
    -1135028687415472587, 799692340257698642, 978860761315449222, 7924082812583568132,
    -357588202204338294, -3879974454153210277, 419228690329009227, -6003091050028190323,
    -8562462507762134285, 332423259680517065, -8566906204735755783, -756200098804663229,
    1703437727438952353, -4618380297870451102, 1242215620586575843, -2165017442286073347,
    2563082261785966679, 335575648157047026, 2152103296846820627, 9010046702613549971,
    6958090743387956843, -8582872097618509266, -1306151468297814446, 4082029413353083298,
    -3674813811853928444, -8365627033456358946, 608925011768556673, 7257841391264077234,
    -3100211376291297650, -8737728612724388102,
]  # fmt: skip

TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view()]
BYTE_TYPES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("kind", BYTE_TYPES, ids=str)
def test_hashes_of_known_byte_strings_never_change(kind: pa.DataType) -> None:
    assert hash_strings(pa.array(list(GOLDEN), kind)).tolist() == list(GOLDEN.values())


@pytest.mark.parametrize("kind", TEXT_TYPES + BYTE_TYPES, ids=str)
def test_hashes_of_every_length_to_33_never_change(kind: pa.DataType) -> None:
    strings: list[str] | list[bytes] = [ALPHABET[:n] for n in range(34)]
    if kind in TEXT_TYPES:
        strings = [ALPHABET[:n].decode() for n in range(34)]

    assert hash_strings(pa.array(strings, kind)).tolist() == GOLDEN_BY_LENGTH


def test_fixed_size_binary_hashes_as_the_same_bytes() -> None:
    assert hash_strings(pa.array([b"68fd1e64"], pa.binary(8))).tolist() == [GOLDEN[b"68fd1e64"]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40)), st.integers(0, 5), st.sampled_from(TEXT_TYPES))
def test_slices_hash_as_the_strings_they_hold(
    strings: list[str], skip: int, kind: pa.DataType
) -> None:
    array = pa.array(["before"] * skip + strings + ["after"], kind).slice(skip, len(strings))

    expected = [mix_text(s) for s in strings]
    assert hash_strings(array).view(np.uint64).tolist() == expected


def test_nulls_leave_the_other_hashes_as_they_are() -> None:
    hashes = hash_strings(pa.array([None, b"a", None, b"", b"68fd1e64"], pa.binary()))

    assert hashes[[1, 3, 4]].tolist() == [GOLDEN[b"a"], GOLDEN[b""], GOLDEN[b"68fd1e64"]]


def test_an_array_without_any_bytes_has_hashes() -> None:
    assert hash_strings(pa.array([None, ""], pa.string()))[1] == GOLDEN[b""]
    assert hash_strings(pa.array([], pa.string())).size == 0


def test_a_million_distinct_strings_have_distinct_keys() -> None:
    strings = np.char.mod("%x", np.arange(1_000_000))

    assert np.unique(hash_strings(pa.array(strings))).size == strings.size


def test_numbers_are_not_hashed() -> None:
    with pytest.raises(TypeError, match="int64"):
        hash_strings(pa.array([1]))


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()],
    ids=str,
)
def test_integers_keep_their_value(kind: pa.DataType) -> None:
    low = 0 if pa.types.is_unsigned_integer(kind) else -1

    keys, valid = keys_of(pa.array([9, low, 5, 127], kind).slice(1))

    assert keys.dtype == np.int64
    assert keys.tolist() == [low, 5, 127]
    assert valid is None


def test_every_64_bit_integer_is_a_key() -> None:
    signed = [-(2**63), 2**63 - 1, 0, -1]
    unsigned = [2**63, 2**63 - 1, 0, 2**64 - 1]

    assert keys_of(pa.array(signed, pa.int64()))[0].tolist() == signed
    assert keys_of(pa.array(unsigned, pa.uint64()))[0].tolist() == signed


def test_booleans_dates_and_timestamps_are_their_integers() -> None:
    day = datetime.date(1970, 1, 11)

    assert keys_of(pa.array([True, False, True]).slice(1))[0].tolist() == [0, 1]
    assert keys_of(pa.array([day], pa.date32()))[0].tolist() == [10]
    assert keys_of(pa.array([day], pa.date64()))[0].tolist() == [10 * 86_400_000]
    assert keys_of(pa.array([12], pa.timestamp("us", "UTC")))[0].tolist() == [12]


def valid_keys(array: pa.Array) -> list[int | None]:
    keys, valid = keys_of(array)
    present = np.ones(keys.size, bool) if valid is None else valid
    return [int(key) if ok else None for key, ok in zip(keys, present, strict=True)]


def test_nulls_are_marked() -> None:
    assert valid_keys(pa.array([None, 5, None]).slice(1)) == [5, None]
    assert valid_keys(pa.nulls(2)) == [None, None]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_a_dictionary_gives_the_keys_of_its_values(kind: pa.DataType) -> None:
    strings = pa.array(["", "a", None, "68fd1e64", "a"]).cast(kind)
    expected = [GOLDEN[b"a"], None, GOLDEN[b"68fd1e64"], GOLDEN[b"a"]]

    assert valid_keys(strings.slice(1)) == expected
    assert valid_keys(strings.dictionary_encode().slice(1)) == expected
    assert valid_keys(pa.array([9, 8, None, 8]).dictionary_encode()) == [9, 8, None, 8]


def test_a_null_in_a_dictionary_is_a_null() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array([b"a", None]))

    assert valid_keys(array) == [GOLDEN[b"a"], None, None, GOLDEN[b"a"]]


def test_the_index_under_a_null_does_not_matter() -> None:
    buffers = [pa.py_buffer(b"\x02"), pa.py_buffer(np.array([99, 0], np.int8).tobytes())]
    indices = pa.Array.from_buffers(pa.int8(), 2, buffers)
    array = pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)

    assert valid_keys(array) == [None, GOLDEN[b"a"]]


def test_an_empty_dictionary_has_only_nulls() -> None:
    array = pa.DictionaryArray.from_arrays(pa.nulls(2, pa.int8()), pa.array([], pa.string()))

    assert valid_keys(array) == [None, None]


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_outside_its_dictionary_is_refused(index: int) -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, index]), pa.array(["a"]), safe=False)

    with pytest.raises(IndexError, match="dictionary of 1 values"):
        keys_of(array)


def test_keys_are_writable_even_where_arrow_shares_read_only_memory() -> None:
    array = pa.Array.from_buffers(pa.int64(), 3, [None, pa.py_buffer(bytes(24))])
    keys, valid = keys_of(array)

    assert not array.buffers()[1].is_mutable
    assert keys.flags.writeable
    assert keys.flags.c_contiguous
    assert valid is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int8(), pa.uint64()),
        (pa.bool_(), pa.int32()),
        (pa.string(), pa.dictionary(pa.int8(), pa.large_binary())),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
    ],
)
def test_types_whose_equal_values_are_equal_keys_are_of_one_kind(
    one: pa.DataType, other: pa.DataType
) -> None:
    assert key_kind(one) == key_kind(other) is not None


def test_types_whose_equal_values_are_other_keys_are_of_other_kinds() -> None:
    types = [pa.int64(), pa.string(), pa.date32(), pa.date64(), pa.timestamp("ms")]

    assert len({key_kind(kind) for kind in [*types, pa.timestamp("us")]}) == 6
