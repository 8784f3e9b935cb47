"""Specs as JSON-able values: the form in which they travel in checkpoints and messages."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from embedding.spec.admission import (
    BloomAdmission,
    CounterAdmission,
    FrequencyAdmission,
    ProbabilisticAdmission,
)
from embedding.spec.eviction import Eviction
from embedding.spec.initial_values import (
    Constant,
    GlorotUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from embedding.spec.optimizers import OPTIMIZERS, Optimizer
from embedding.spec.schedule import Schedule
from embedding.spec.table import TableSpec, WarmStart

Json = dict[str, Any]


def to_json(spec: Any) -> Json:
    """Return a spec as JSON-able values; `table_from_json` reads a table back."""
    return dataclasses.asdict(spec)


_INITIALIZERS: dict[str, type] = {
    "uniform": Uniform,
    "glorot_uniform": GlorotUniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
    "constant": Constant,
    "zeros": Zeros,
}

_ADMISSIONS: dict[str, type] = {
    "counter": CounterAdmission,
    "bloom": BloomAdmission,
    "probabilistic": ProbabilisticAdmission,
    "frequency_of": FrequencyAdmission,
}


def optimizer_from_json(data: Json) -> Optimizer:
    """Read an optimizer; raises ValueError where a type or a field is not what one has."""
    schedule = data.get("schedule")
    if schedule is not None:
        data = {**data, "schedule": _build(Schedule, schedule)}
    return _tagged(OPTIMIZERS, "optimizer", data)


def table_from_json(data: Json) -> TableSpec:
    """Read a table's spec; raises ValueError where a type or a field is not what one has."""
    data = dict(data)
    data["initializer"] = _tagged(_INITIALIZERS, "initializer", data["initializer"])
    data["optimizer"] = optimizer_from_json(data["optimizer"])
    if data.get("admission") is not None:
        data["admission"] = _tagged(_ADMISSIONS, "admission", data["admission"])
    if data.get("eviction") is not None:
        data["eviction"] = _build(Eviction, data["eviction"])
    if data.get("warm_start") is not None:
        data["warm_start"] = _build(WarmStart, data["warm_start"])
    return _build(TableSpec, data)


def _tagged(kinds: Mapping[str, type], what: str, data: Json) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{what} must be a mapping, got {data!r:.80}")
    kind = kinds.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f"{what} type must be one of {sorted(kinds)}, got {data.get('type')!r}")
    return _build(kind, data)


def _build(kind: Any, data: Json) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"a {kind.__name__} must be a mapping, got {data!r:.80}")
    known = _hints(kind)
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; known: {sorted(known)}")
    for name, value in data.items():
        if not _is_of(value, known[name]):
            raise ValueError(f"{kind.__name__}.{name} can't be {value!r:.80}")
    return kind(**data)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotation of a spec's field; True is no number."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(hint))
    return type(value) in (int, float) if hint is float else type(value) is hint
