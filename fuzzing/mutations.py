"""Damage to bytes, as a broken disk or a hostile peer does it, and to values in them."""

import struct
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

# Numbers at which lengths and types end.
EDGES = (
    0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63),
)  # fmt: skip
_FORMATS = ("<H", ">H", "<I", ">I", "<Q", ">Q")
_TEXTS = ("", "\0", "..", "/", "../x", "/etc/passwd", "a" * 300, "\ud800", "é", "NaN", "1", "adam")
_NUMBERS = (0.0, -0.0, 0.5, 1e-300, 1e300, -1.5, float("nan"), float("inf"), float("-inf"))


def damaged(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes with one to four places of them changed, moved, cut or doubled.

    Args:
        others: what a piece may come from.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage(changed, rng, others)
    return bytes(changed)


def _damage(data: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    if not data:
        data += rng.randbytes(rng.choice((1, 4, 40)))
        return
    at = rng.randrange(len(data))
    # Most that is read as a length or a type stands at the beginning or the end.
    where = rng.random()
    if where < 0.3:
        at = min(at, rng.randrange(64))
    elif where < 0.5:
        at = max(at, len(data) - 1 - rng.randrange(64))
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 16, 64, 1024)))
    match rng.randrange(9):
        case 0 | 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xFF, rng.randrange(256)))
        case 3:
            form = rng.choice(_FORMATS)
            size = struct.calcsize(form)
            value = rng.choice(EDGES) % (1 << 8 * size)
            data[at : at + size] = struct.pack(form, value)
        case 4:
            del data[at:]
        case 5:
            del data[at:end]
        case 6:
            data[at:at] = data[at:end]
        case 7:
            data[at:end] = rng.randbytes(end - at) if rng.random() < 0.5 else bytes(end - at)
        case 8:
            other = rng.choice(others) if others else bytes(data)
            start = rng.randrange(len(other)) if other else 0
            data[at:end] = other[start : start + end - at]


def changed_value(value: Any, rng: Random) -> Any:
    """Return a tree of lists, mappings and values in which one or two places are others."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _changed(value, rng)
    return value


def _changed(value: Any, rng: Random) -> Any:
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.9:
        items = list(value)
        at = rng.randrange(len(items))
        match rng.randrange(12):
            case 0:
                del items[at]
            case 1:
                items.insert(at, any_value(rng))
            case 2:
                items.insert(at, items[rng.randrange(len(items))])
            case 3:
                rng.shuffle(items)
            case _:
                items[at] = _changed(items[at], rng)
        return items
    if isinstance(value, dict) and value and rng.random() < 0.9:
        entries = dict(value)
        name = rng.choice(list(entries))
        match rng.randrange(12):
            case 0:
                del entries[name]
            case 1:
                entries[rng.choice((*_TEXTS, name + "s"))] = any_value(rng)
            case 2:
                entries[name] = entries[rng.choice(list(entries))]
            case _:
                entries[name] = _changed(entries[name], rng)
        return entries
    return _another(value, rng)


def _another(value: Any, rng: Random) -> Any:
    """Return a value in the place of one, half of the time of its type."""
    if rng.random() < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return rng.choice((*EDGES, value + 1, value - 1, -value, value * 2, float(value)))
        if isinstance(value, float):
            return rng.choice((*_NUMBERS, -value, value * 2, int(value) if abs(value) < 1e9 else 0))
        if isinstance(value, str):
            return rng.choice((*_TEXTS, value[1:], value + value[-1:], value.upper(), value[::-1]))
        if isinstance(value, bytes):
            return damaged(value, rng)
    return any_value(rng)


def any_value(rng: Random, depth: int = 0) -> Any:
    """Return any value that JSON or msgpack may hold."""
    match rng.randrange(10 if depth < 3 else 6):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2 | 3:
            return rng.choice(EDGES)
        case 4:
            return rng.choice(_NUMBERS)
        case 5:
            return rng.choice(_TEXTS)
        case 6:
            return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 7:
            return {rng.choice(_TEXTS): any_value(rng, depth + 1) for _ in range(rng.randrange(3))}
        case 8:
            lists = rng.random() < 0.5
            return nested(rng.choice((10, 200, 900, 5000)) if depth == 0 else 20, lists=lists)
        case _:
            return [any_value(rng, 3)] * rng.choice((1, 100, 3000) if depth == 0 else (1, 5))


@cache
def nested(depth: int, *, lists: bool) -> Any:
    """Return lists, or mappings, in one another; the same ones each time."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value
