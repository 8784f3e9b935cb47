"""Validation errors in the words of the job file: the dotted field, what it got, what it takes."""

import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from runtime.near_names import near_name

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """A job file or an override that can't be used; the text is meant for its author."""


_MAPPINGS = ("model_type", "model_attributes_type", "dataclass_type", "dict_type")
_WORDS = {
    "list_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def validated(model: type[Config], data: Any, *, where: str) -> Config:
    """Validate `data`; raise ConfigError with one line for each wrong field."""
    lines = list(_truth_values(model, data, ""))
    if lines:
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_line(model, dict(item)) for item in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from error


def _truth_values(annotation: Any, value: Any, field: str) -> Iterator[str]:
    """Find truth values in the place of numbers: `batch_size: yes` would be batches of 1."""
    members = _members(annotation)
    if isinstance(value, bool):
        # One item may be short for a list of it.
        items = [item for member in members for item in _members(_step(member, 0))]
        if bool not in members and any(member in (int, float) for member in [*members, *items]):
            yield (
                f"{field} must be a number, got {value}; YAML reads yes, no, on and off as truth"
                " values"
            )
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
    for part, child in parts:
        steps = [_step(member, part) for member in members]
        following = next((step for step in steps if step is not None), None)
        yield from _truth_values(following, child, f"{field}.{part}" if field else str(part))


def _line(model: type[BaseModel], error: dict[str, Any]) -> str:
    location = tuple(part for part in error["loc"] if part != "[key]")
    field = ".".join(str(part) for part in _without_tags(model, location))
    kind, message, value = error["type"], error["msg"], error.get("input")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_names(model, location[:-1])
        return f"unknown key {field}{nearest(str(location[-1]), known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        field += "." + error["ctx"]["discriminator"].strip("'")
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        tag = error["ctx"]["tag"]
        return f"{field} must be one of {', '.join(known)}, got {tag!r}{nearest(tag, known)}"
    if kind == "union_tag_not_found":
        known = [str(tag) for member in _at(model, location) for tag in _tags(member)]
        return f"{field} is required: one of {', '.join(known)}"
    if kind == "missing":
        return f"{field} is required"
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return f"{field}: {message}" if field else message
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if kind in _MAPPINGS:
        if value is None:
            needed = field in model.model_fields and model.model_fields[field].is_required()
            return f"{field} is empty; give it keys" + ("" if needed else ", or leave it out")
        named = [member for member in _at(model, location) if value in _tags(member)]
        tag = "type" if named and dataclasses.is_dataclass(named[0]) else "kind"
        hint = f"; write {{{tag}: {value}}}" if named else ""
        return f"{field} must have keys of its own (`key: value`), got {shown}{hint}"
    if kind == "too_short" and value == "":
        return f"{field} must not be an empty text; give it a value, or leave it out"
    if kind == "too_short":
        return f"{field} must have at least {error['ctx']['min_length']} item, got {shown}"
    if kind in _WORDS:
        return f"{field} {_WORDS[kind]}, got {shown}{_remedy(kind, value)}"
    return f"{field}: {message[0].lower()}{message[1:]}, got {shown}"


def _remedy(kind: str, value: Any) -> str:
    if kind == "list_type" and isinstance(value, str | int | float):
        return f"; write [{value}]"
    if kind == "string_type" and not isinstance(value, dict | list | None):
        return "; put it into quotes"
    return ""


def nearest(name: str, known: list[str]) -> str:
    """Return a hint with the known name that is near a wrong one, else all of them."""
    near = near_name(name, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _without_tags(model: type, location: tuple[Any, ...]) -> list[Any]:
    """Leave out the parts of a location that only say which member of a union was tried."""
    parts: list[Any] = []
    current: Any = model
    for part in location:
        following = _step(current, part)
        if following is None and _members(current):
            tagged = [m for m in _members(current) if part in _tags(m)]
            if tagged:
                current = tagged[0]
                continue
        parts.append(part)
        current = following
    return parts


def _at(model: type, location: tuple[Any, ...]) -> list[Any]:
    """The types that a place in the configuration may have."""
    current: Any = model
    for part in location:
        following = _step(current, part)
        if following is None:
            tagged = [m for m in _members(current) if part in _tags(m)]
            following = tagged[0] if tagged else None
        current = following
    return _members(current)


def _known_names(model: type, location: tuple[Any, ...]) -> list[str]:
    for member in _at(model, location):
        fields = _fields(member)
        if fields:
            return sorted(fields)
    return []


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the type itself, without None and annotations."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        found = []
        for argument in get_args(annotation):
            found += _members(argument)
        return [member for member in found if member is not type(None)]
    return [] if annotation is None else [annotation]


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return dict(get_type_hints(kind))
    return {}


def _step(annotation: Any, part: Any) -> Any:
    """The type that a key or index leads to, or None."""
    members = _members(annotation)
    if len(members) != 1:
        return None
    member = members[0]
    if get_origin(member) is dict:
        return get_args(member)[1]
    if get_origin(member) is list:
        return get_args(member)[0]
    return _fields(member).get(str(part))


def _tags(kind: Any) -> tuple[Any, ...]:
    """What the `type` or `kind` of a member of a union may say."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.default for field in dataclasses.fields(kind) if field.name == "type")
    fields = _fields(kind)
    return get_args(fields.get("kind")) or get_args(fields.get("type"))
