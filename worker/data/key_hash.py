"""From Arrow values to int64 keys: integers as they are, strings by a frozen hash.

The definition of the hash is part of the checkpoint format: a change gives every string another
row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from embedding.kernels.mixing import mix64

KEY_TYPES = (
    "integers, whole decimals and floats, strings, binary, UUIDs, booleans, dates, timestamps or a"
    " dictionary of one of these"
)

_WORD = np.uint64(8)
_BYTE_BITS = np.uint64(8)


@njit(cache=True, nogil=True)
def _hash(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], out: npt.NDArray[np.int64]
) -> None:
    # Unsigned throughout: positions are never negative, and Numba then omits the wraparound test.
    start_state = mix64(np.uint64(0))
    for i in range(out.size):
        position = np.uint64(offsets[i])
        end = np.uint64(offsets[i + 1])
        length = end - position
        state = start_state
        while end - position >= _WORD:
            word = np.uint64(0)
            for k in range(8):
                byte = np.uint64(data[position + np.uint64(k)])
                word |= byte << np.uint64(8 * k)
            state = mix64(state ^ word)
            position += _WORD
        if position < end:
            word = np.uint64(0)
            shift = np.uint64(0)
            while position < end:
                word |= np.uint64(data[position]) << shift
                shift += _BYTE_BITS
                position += np.uint64(1)
            state = mix64(state ^ word)
        out[i] = np.int64(mix64(state ^ length))


def hash_strings(array: pa.Array) -> npt.NDArray[np.int64]:
    """Hash strings to keys.

    With `state = mix64(0)`, each 8 bytes, read as a little-endian uint64 and the last ones filled
    up with zero bytes, make `state = mix64(state ^ word)`; the key is `mix64(state ^ length)`,
    length in bytes, read as int64. A string hashes as its UTF-8 bytes. The same bytes give the
    same key in every Arrow type and on every machine.

    Args:
        array: n values of a string or binary type (`large_`, `_view` and fixed-size ones too).

    Returns:
        int64[n]; unspecified where the value is null.

    Raises:
        TypeError: the array has another type.
    """
    kind = array.type
    if not _is_string_like(kind):
        raise TypeError(f"can't hash an array of type {kind}: expected strings or binary")
    if not _has_offsets(kind):
        array = array.cast(pa.large_binary())
    out = np.empty(len(array), np.int64)
    if out.size == 0:
        return out
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    stop = array.offset + len(array) + 1
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32, count=stop)
    has_data = data_buffer is not None and data_buffer.size > 0
    data = np.frombuffer(data_buffer, np.uint8) if has_data else np.zeros(0, np.uint8)
    # One width of offsets and one kind of access, so that the kernel is compiled once.
    offsets = offsets[array.offset :].astype(np.int64)
    data.flags.writeable = False
    _hash(data, offsets, out)
    return out


def keys_of(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Return the keys of an array whose type `key_kind` accepts.

    Integers, dates and timestamps are their number (unsigned 64-bit ones the int64 of the same
    bits), false and true are 0 and 1, strings are hashed, a dictionary's values once each. Of
    extension types what they store counts: 16 bytes of a UUID.

    Returns:
        int64[n], writable and unspecified where null; and `valid_of` the array.

    Raises:
        IndexError: an index is outside its dictionary, which Arrow doesn't check in damaged files.
        NotAKeyError: a float or a decimal is no whole number, or one that isn't known exactly.
    """
    types, array = pa.types, stored(array)
    if types.is_dictionary(array.type):
        return _dictionary_keys(array)
    valid = valid_of(array)
    if _is_string_like(array.type):
        return hash_strings(array), valid
    if types.is_floating(array.type):
        return _whole_number_keys(array)
    if types.is_decimal(array.type):
        return _decimal_keys(array)
    if types.is_date32(array.type):
        array = array.view(pa.int32())
    elif types.is_temporal(array.type):
        array = array.view(pa.int64())
    values = values_of(array)
    values = values.view(np.int64) if values.dtype == np.uint64 else values
    # Copies what Arrow shares read-only, so that all batches have the same kind of array.
    return np.require(values, np.int64, ["C", "A", "W"]), valid


def key_of(value: int | str) -> int:
    """Return the key of an integer, signed or unsigned of 64 bits, or of a string."""
    if isinstance(value, str):
        return int(hash_strings(pa.array([value]))[0])
    return value - (1 << 64) if value >= 1 << 63 else value


def key_kind(kind: pa.DataType) -> str | None:
    """Return which values are the same key: equal values of two types of one kind are.

    Returns:
        `integer`, `string`, `uuid`, `date32[day]`, `timestamp[us]`, ...; None for the type of
        nulls. UUIDs are apart from strings, as their text would be other keys.

    Raises:
        TypeError: values of this type are no keys.
    """
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return "uuid"
        if kind.extension_name != "arrow.json":  # its text is no key: blanks in it may differ
            return key_kind(kind.storage_type)
    if types.is_null(kind):
        return None
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind):
        return "integer"
    if types.is_decimal(kind):
        return "integer"
    if _is_string_like(kind):
        return "string"
    if types.is_timestamp(kind):
        return f"timestamp[{kind.unit}]"
    if types.is_date(kind):
        return str(kind)
    raise TypeError(f"values of type {kind} are no keys: expected {KEY_TYPES}")


def values_of(array: pa.Array) -> npt.NDArray[Any]:
    """Return the numbers of an array, of NumPy's type for them.

    Booleans are uint8 and decimals float64, to the last bit or its neighbour.

    Returns:
        [n], a view where possible; unspecified where null.
    """
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_null(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    kind = array.type.to_pandas_dtype()
    if len(array) == 0:
        return np.empty(0, kind)
    stop = array.offset + len(array)
    return np.frombuffer(array.buffers()[1], kind, count=stop)[array.offset :]


def valid_of(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    """Return which values are not null, bool[n]; None where all are."""
    if array.null_count == 0:
        return None
    return array.is_valid().to_numpy(zero_copy_only=False)


def stored(array: pa.Array) -> pa.Array:
    """Return what an array of an extension type stores, any other as it is."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array


def exact_integers(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return decimals as integers.

    Returns:
        int64[n], and which of them are the decimal's very value, bool[n]: it is whole, and an
        int64. Both are unspecified where null.
    """
    wide = pa.decimal256(76, 0) if pa.types.is_decimal256(array.type) else pa.decimal128(38, 0)
    whole = array.cast(wide, safe=False)  # cut towards zero
    integers = whole.cast(pa.int64(), safe=False)
    exact = pc.equal(integers.cast(wide), whole)
    if array.type.scale > 0:
        exact = pc.and_(exact, pc.equal(whole.cast(array.type, safe=False), array))
    return values_of(integers), values_of(exact).astype(bool)


class NotAKeyError(ValueError):
    """A float or decimal that is not a whole number, or too large to be an exact key.

    Args:
        position: in the array.
        value: that stands there.
        expected: what a key of the array's type must be.
    """

    def __init__(self, position: int, value: Any, expected: str) -> None:
        super().__init__(position, value, expected)
        self.position, self.value, self.expected = position, value, expected


def _whole_number_keys(
    array: pa.Array,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Keys of whole numbers that came as floats, as pandas writes integers with missing values.

    From 2^53 on (float64) more than one integer comes as the same float, so none of them is known.
    """
    values = values_of(array)
    bits = np.finfo(values.dtype).nmant + 1
    known = ~np.isnan(values)
    valid = valid_of(array)
    known = known if valid is None else known & valid
    with np.errstate(invalid="ignore"):
        wrong = known & ((values != np.trunc(values)) | (np.abs(values) >= 2**bits))
    if wrong.any():
        position = int(np.flatnonzero(wrong)[0])
        expected = f"a whole number of a magnitude below 2^{bits}, where {array.type} is exact"
        raise NotAKeyError(position, float(values[position]), expected)
    keys = np.where(known, values, 0).astype(np.int64)
    return keys, None if known.all() else known


def _decimal_keys(
    array: pa.Array,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Keys of whole numbers that came as decimals, as databases write integers."""
    keys, exact = exact_integers(array)
    valid = valid_of(array)
    wrong = ~exact if valid is None else ~exact & valid
    if wrong.any():
        position = int(np.argmax(wrong))
        expected = "a whole number from -2^63 to 2^63 - 1"
        raise NotAKeyError(position, array[position].as_py(), expected)
    return np.require(keys, np.int64, ["C", "A", "W"]), valid


def _dictionary_keys(
    array: pa.DictionaryArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    keys, known = keys_of(array.dictionary)
    valid = valid_of(array.indices)
    positions = values_of(array.indices).astype(np.int64)
    if valid is not None:
        positions[~valid] = 0
    if keys.size == 0 and not positions.any():
        return np.zeros(positions.size, np.int64), valid
    if positions.size and not 0 <= positions.min() <= positions.max() < keys.size:
        raise IndexError(f"an index is outside its dictionary of {keys.size} values")
    if known is not None:
        valid = known[positions] if valid is None else valid & known[positions]
    return keys[positions], valid


def _is_string_like(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        _has_offsets(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_string_view(kind)
        or types.is_binary_view(kind)
    )


def _has_offsets(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )
