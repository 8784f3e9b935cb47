"""Specs as JSON-able values: the form in which they travel in checkpoints and messages."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
    """Read an optimizer; raises ValueError where the type or a field is not known."""
    schedule = data.get("schedule")
    if schedule is not None:
        data = {**data, "schedule": _build(Schedule, schedule)}
    return _tagged(OPTIMIZERS, "optimizer", data)


def table_from_json(data: Json) -> TableSpec:
    """Read a table's spec; raises ValueError where a type or a field is not known."""
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
    kind = kinds.get(data.get("type", ""))
    if kind is None:
        raise ValueError(f"{what} type must be one of {sorted(kinds)}, got {data.get('type')!r}")
    return _build(kind, data)


def _build(kind: Any, data: Json) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; known: {sorted(known)}")
    return kind(**data)
