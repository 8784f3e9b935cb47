"""Values that msgpack or JSON gave, checked against the annotations of the dataclasses they fill.

A dataclass is the list of its fields in order, a tuple is a list, an array of one axis its bytes.
"""

import dataclasses
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

Decoder = Callable[[Any], Any]

_INT64 = range(-(2**63), 2**63)


def field_values(value: Any) -> list[Any]:
    """Return the fields of a dataclass in order; TypeError for anything else."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"a {type(value).__name__} can't be sent")
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


def decoder_of(hint: Any) -> Decoder:
    """Return a function that checks a value and gives it the annotated type.

    Its errors are ValueError. Integers are int64; a float may come as an integer.
    """
    if hint is Any:
        return lambda value: value
    if hint in _DECODERS:
        return _DECODERS[hint]
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint))
    if get_origin(hint) is tuple:
        *items, last = get_args(hint)
        if last is Ellipsis:
            return _tuple_of(decoder_of(items[0]))
        return _fixed_tuple([decoder_of(item) for item in (*items, last)])
    if get_origin(hint) is dict:
        return _dict_of(*map(decoder_of, get_args(hint)))
    if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint):
        (other,) = (each for each in get_args(hint) if each is not type(None))
        return _none_or(decoder_of(other))
    dtype = array_dtype(hint)
    if dtype is not None:
        return _array_of(dtype)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        fields = [decoder_of(hints[field.name]) for field in dataclasses.fields(hint)]
        decode = _fixed_tuple(fields)
        return lambda value: hint(*decode(value))
    raise TypeError(f"no decoder for {hint}")


def array_dtype(hint: Any) -> np.dtype[Any] | None:
    """Return what an annotation `NDArray[...]` says that the array holds; None for any other."""
    if get_origin(hint) is npt.NDArray:  # from NumPy 2.5 on, an alias that keeps its own name
        return np.dtype(get_args(hint)[0])
    if get_origin(hint) is np.ndarray:
        return np.dtype(get_args(get_args(hint)[1])[0])
    return None


def _wrong(expected: str, value: Any) -> ValueError:
    shown = f" {value!r}"[:40] if isinstance(value, (int, float, str)) else ""
    return ValueError(f"expected {expected}, got {type(value).__name__}{shown}")


def _int(value: Any) -> int:
    if type(value) is not int or value not in _INT64:
        raise _wrong("an int64", value)
    return value


def _float(value: Any) -> float:
    if type(value) is not int and type(value) is not float:
        raise _wrong("a float", value)
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong("a bool", value)
    return value


def _str(value: Any) -> str:
    if type(value) is not str:
        raise _wrong("a string", value)
    return value


_DECODERS: dict[Any, Decoder] = {int: _int, float: _float, bool: _bool, str: _str}


def _one_of(choices: tuple[Any, ...]) -> Decoder:
    def decode(value: Any) -> Any:
        if value not in choices:
            raise _wrong(f"one of {choices}", value)
        return value

    return decode


def _dict_of(key: Decoder, item: Decoder) -> Decoder:
    def decode(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise _wrong("a mapping", value)
        return {key(k): item(v) for k, v in value.items()}

    return decode


def _none_or(other: Decoder) -> Decoder:
    return lambda value: None if value is None else other(value)


def _array_of(dtype: np.dtype[Any]) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not bytes or len(value) % dtype.itemsize:
            raise _wrong(f"the bytes of {dtype}", value)
        if dtype == np.bool_:
            return np.frombuffer(value, np.uint8) != 0
        return np.frombuffer(value, dtype)

    return decode


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _wrong("a list", value)
    return value


def _tuple_of(item: Decoder) -> Decoder:
    return lambda value: tuple([item(each) for each in _list(value)])


def _fixed_tuple(items: list[Decoder]) -> Decoder:
    def decode(value: Any) -> tuple[Any, ...]:
        if len(_list(value)) != len(items):
            raise _wrong(f"{len(items)} values", value)
        return tuple([item(each) for item, each in zip(items, value, strict=True)])

    return decode
