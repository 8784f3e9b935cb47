"""Values that msgpack or JSON gave, checked against the annotations of the dataclasses they fill.

A dataclass is the list of its fields in order, in a file (`from_json`) an object of them by name; a
tuple is a list, an array of one axis its bytes.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from runtime.strict_json import json_text

T = TypeVar("T")
Decoder = Callable[[Any], Any]

_INT64 = range(-(2**63), 2**63)


def field_values(value: Any) -> list[Any]:
    """Return the fields of a dataclass in order; TypeError for anything else."""
    kind: Any = type(value)
    values: list[Any] = _values_of(kind)(value)
    return values


@cache
def _values_of(kind: Any) -> Callable[[Any], list[Any]]:
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"a {kind.__name__} can't be sent")
    names = [field.name for field in dataclasses.fields(kind)]
    if len(names) < 2:
        return lambda value: [getattr(value, name) for name in names]
    values = attrgetter(*names)
    return lambda value: list(values(value))


def to_json(value: Any) -> dict[str, Any]:
    """Return a dataclass as what its JSON text is read as; numbers that are not finite are null."""
    data: dict[str, Any] = json.loads(json_text(dataclasses.asdict(value)))
    return data


def from_json(kind: type[T], data: Any) -> T:
    """Read back a dataclass that `to_json` gave; fields with a default may be missing.

    Raises:
        ValueError: a value does not fit its annotation; the message names the field.
    """
    named: Any = kind
    value: T = _named_decoder_of(named)(data)
    return value


@cache
def _named_decoder_of(kind: Any) -> Decoder:
    return decoder_of(kind, named=True)


def decoder_of(hint: Any, *, named: bool = False) -> Decoder:
    """Return a function that checks a value and gives it the annotated type.

    Its errors are ValueError. Integers are int64; a float may come as an integer.

    Args:
        named: whether a dataclass is an object of its fields by name, and null a float that is not
            a number; else it is the list of them.
    """
    if hint is Any:
        return lambda value: value
    if named and hint is float:
        return lambda value: math.nan if value is None else _float(value)
    if hint in _DECODERS:
        return _DECODERS[hint]
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint))
    if get_origin(hint) is tuple:
        *items, last = get_args(hint)
        if last is Ellipsis:
            return _tuple_of(decoder_of(items[0], named=named))
        return _filling(None, [decoder_of(item, named=named) for item in (*items, last)])
    if get_origin(hint) is dict:
        return _dict_of(*(decoder_of(each, named=named) for each in get_args(hint)))
    if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint):
        (other,) = (each for each in get_args(hint) if each is not type(None))
        return _none_or(decoder_of(other, named=named))
    dtype = array_dtype(hint)
    if dtype is not None:
        return _array_of(dtype)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        fields = {f.name: decoder_of(hints[f.name], named=named) for f in dataclasses.fields(hint)}
        if named:
            return _object_of(hint, fields)
        return _filling(hint, list(fields.values()))
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
    return lambda value: tuple([item(each) for each in _list(value)]) if value != [] else ()


# What needs no look at by its decoder, in the code that `_filling` makes.
_RIGHT: dict[Decoder, str] = {
    _int: "type({0}) is int and -0x8000000000000000 <= {0} <= 0x7fffffffffffffff",
    _float: "type({0}) is float",
    _bool: "type({0}) is bool",
    _str: "type({0}) is str",
}


def _filling(kind: type | None, items: list[Decoder]) -> Decoder:
    """Return what checks a list of values, each by its decoder, and makes a `kind` of them.

    It is compiled, as dataclasses compile theirs: a loop over decoders takes three times as long,
    and all that the coordinator hears goes through it.

    Args:
        kind: a dataclass with these fields; None: a tuple.
    """
    names = [f"v{number}" for number in range(len(items))]
    lines = [
        "def decode(value):",
        f"    if type(value) is not list or len(value) != {len(items)}:",
        f"        raise wrong('{len(items)} values', value)",
    ]
    if names:
        lines.append(f"    {', '.join(names)}, = value")
    for number, (name, item) in enumerate(zip(names, items, strict=True)):
        assign = f"{name} = items[{number}]({name})"
        right = _RIGHT.get(item)
        lines.append(f"    if not ({right.format(name)}): {assign}" if right else f"    {assign}")
    made = ", ".join(names)
    lines.append(f"    return kind({made})" if kind is not None else f"    return ({made},)")
    scope: dict[str, Any] = {"items": items, "kind": kind, "wrong": _wrong}
    exec("\n".join(lines), scope)
    decode: Decoder = scope["decode"]
    return decode


def _object_of(kind: type, fields: dict[str, Decoder]) -> Decoder:
    needed = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(f"the fields of {kind.__name__}", value)
        unknown, missing = sorted(value.keys() - fields), sorted(needed - value.keys())
        if unknown or missing:
            what = f"has no field {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
            raise ValueError(f"{kind.__name__} {what}")
        values = {}
        for name, each in value.items():
            try:
                values[name] = fields[name](each)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return kind(**values)

    return decode
