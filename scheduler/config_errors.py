"""Validation errors in the words of the job file: the dotted field, what it got, what it takes."""

import dataclasses
import difflib
import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """A job file or an override that can't be used; the text is meant for its author."""


def validated(model: type[Config], data: Any, *, where: str) -> Config:
    """Validate `data`; raise ConfigError with one line for each wrong field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_line(model, dict(item)) for item in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from error


def _line(model: type[BaseModel], error: dict[str, Any]) -> str:
    location = tuple(error["loc"])
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
    if kind in ("missing", "union_tag_not_found"):
        return f"{field} is required"
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return f"{field}: {message}" if field else message
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{field}: {message[0].lower()}{message[1:]}, got {shown}"


def nearest(name: str, known: list[str]) -> str:
    """Return a hint with the known name nearest to a wrong one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
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


def _known_names(model: type, location: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in location:
        following = _step(current, part)
        if following is None:
            tagged = [m for m in _members(current) if part in _tags(m)]
            following = tagged[0] if tagged else None
        current = following
    for member in _members(current):
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
    return get_args(_fields(kind).get("kind"))
