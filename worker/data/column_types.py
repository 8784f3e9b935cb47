"""Which columns a job can use: what is known from a file's schema, before anything is decoded.

docs/data.md says which types are accepted.
"""

from collections.abc import Callable

import pyarrow as pa

from runtime.near_names import near_names
from worker.data.key_hash import KEY_TYPES, key_kind
from worker.errors import DataError
from worker.spec import FeatureSpec, SparseFeature

_KEYS = f"{KEY_TYPES}, or lists of one of these"
_JOIN_KEY = "key of labels"
_NUMBERS = "integers, floats, decimals or booleans"
_SEGMENTS = "integers, strings or booleans"
_CAST = "Cast or hash it when the files are written"
_NOT_JSON = (
    "Write its lists as a list column, as pyarrow, Polars, DuckDB and Spark do, or cast it to plain"
    " strings if the text itself is the key"
)


_NAMES = "the names in the job's data section"


def check_schema(schema: pa.Schema, features: FeatureSpec, file: str) -> None:
    """Refuse a file that lacks a column or has one of an unusable type.

    Args:
        schema: as the reader decodes the file.

    Raises:
        DataError: names the file and the column, and the nearest name where one is missing.
    """
    column_kinds(schema, features, file)


def column_kinds(
    schema: pa.Schema, features: FeatureSpec, file: str
) -> dict[tuple[str, str], str | None]:
    """Return what each column holds, as far as all files of a data set must agree on it.

    Returns:
        By (role, column): `number`, `integer`, `string`, `uuid`, `date32[day]`, `timestamp[us]`,
        `list of integer`, ... None where every value is null, which agrees with everything.

    Raises:
        DataError: as `check_schema`.
    """
    kinds: dict[tuple[str, str], str | None] = {}
    numeric = [(name, "dense column") for name in features.dense]
    numeric += [(name, "label") for name in features.label_columns]
    if features.weight is not None:
        numeric.append((features.weight, "column of sample weights"))
    for name, role in numeric:
        key = _key_of_label(features, name) if role == "label" else None
        kind = _field_type(schema, name, file, is_number, key=key)
        if not is_number(kind):
            raise _unusable(name, role, kind, _NUMBERS, file)
        kinds[role, name] = None if pa.types.is_null(kind) else "number"
    if features.segment is not None:
        kind = _field_type(schema, features.segment, file, lambda own: _segments(own) is not None)
        kinds["segment column", features.segment] = found = _segments(kind)
        if found is None and not pa.types.is_null(kind):
            raise _unusable(features.segment, "segment column", kind, _SEGMENTS, file)
    if features.key is not None:
        kind = _field_type(schema, features.key, file, lambda own: not is_list(own))
        if is_list(kind) or not _has_keys(kind):
            raise _unusable(features.key, _JOIN_KEY, kind, KEY_TYPES, file)
        kinds[_JOIN_KEY, features.key] = key_kind(kind)
    if features.group is not None:
        kind = _field_type(schema, features.group, file, lambda own: not is_list(own))
        if is_list(kind) or not _has_keys(kind):
            raise _unusable(features.group, "group column", kind, KEY_TYPES, file)
        kinds["group column", features.group] = key_kind(kind)
    for feature in features.sparse:
        kind = _field_type(schema, feature.column, file, _has_keys)
        try:
            keys = key_kind(_item(kind))
        except TypeError:
            raise _unusable(feature.column, "sparse column", kind, _KEYS, file) from None
        kinds["sparse column", feature.column] = _list_kind(kind, keys)
        _check_pad(feature, keys, file)
        if feature.weights is not None:
            own = _field_type(schema, feature.weights, file, lambda own: is_number(_item(own)))
            alike = is_list(own) == is_list(kind) or pa.types.is_null(own) or pa.types.is_null(kind)
            if not alike or not is_number(_item(own)):
                expected = "lists of numbers" if is_list(kind) else "numbers"
                raise _unusable(feature.weights, "weights column", own, expected, file)
            number = None if pa.types.is_null(_item(own)) else "number"
            kinds["weights column", feature.weights] = _list_kind(own, number)
    return kinds


def _key_of_label(features: FeatureSpec, column: str) -> str:
    """Return where a job names a column of labels."""
    if features.label == column:
        return "data.label" if features.key is None else "data.label_stream.label"
    named = [f"data.labels.{task.name}" for task in features.tasks if task.column == column]
    return " and ".join(named)


def _check_pad(feature: SparseFeature, keys: str | None, file: str) -> None:
    """Refuse padding that can't be among the keys: nothing would be left out."""
    if feature.pad is None or keys is None:
        return
    if keys != ("string" if isinstance(feature.pad, str) else "integer"):
        raise DataError(
            what="pad is no value of the feature's column",
            file=file,
            column=feature.column,
            got=f"got pad {feature.pad!r}, the column holds keys of the kind {keys}",
            remedy="Write a number for integers, and a text in quotes for strings",
        )


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that an extension type stores its values in, any other as it is."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Return whether values are lists of any layout."""
    types, kind = pa.types, storage_type(kind)
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _segments(kind: pa.DataType) -> str | None:
    """Return what values of a type name segments by, None where they can't."""
    types, kind = pa.types, storage_type(kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind):
        return "integer"
    if types.is_boolean(kind):
        return "boolean"
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return "string" if text else None


def _item(kind: pa.DataType) -> pa.DataType:
    return storage_type(kind).value_type if is_list(kind) else kind


def _list_kind(kind: pa.DataType, scalar: str | None) -> str | None:
    return f"list of {scalar}" if scalar and is_list(kind) else scalar


def _has_keys(kind: pa.DataType) -> bool:
    try:
        key_kind(_item(kind))
    except TypeError:
        return False
    return True


def is_number(kind: pa.DataType) -> bool:
    types, kind = pa.types, storage_type(kind)
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def _field_type(
    schema: pa.Schema,
    name: str,
    file: str,
    is_usable: Callable[[pa.DataType], bool],
    *,
    key: str | None = None,
) -> pa.DataType:
    """Return a column's type; where it is missing, name near ones that could be used so.

    Args:
        key: of the job, which names the column; None: one of the section data.
    """
    found = schema.get_all_field_indices(name)
    if len(found) == 1:
        return schema.field(found[0]).type
    if found:
        raise DataError(
            what="the file has two columns of one name",
            file=file,
            column=name,
            remedy="Write the file again with distinct names",
        )
    usable = (field.name for field in schema if is_usable(field.type))
    near = " or ".join(map(repr, near_names(name, usable, most=3)))
    raise DataError(
        what="the file lacks a column",
        file=file,
        column=name,
        got=f"its {len(schema.names)} columns have no such name"
        + (f", but {near}" if near else ""),
        remedy=f"Correct {key or _NAMES}, or leave the file out",
    )


def _unusable(name: str, role: str, kind: pa.DataType, expected: str, file: str) -> DataError:
    is_json = _is_json(kind) or _is_json(_item(kind))
    return DataError(
        what=f"a {role} has an unusable type",
        file=file,
        column=name,
        got=f"got {'JSON text' if is_json else kind}, expected {expected}",
        remedy=_NOT_JSON if is_json else _CAST,
    )


def _is_json(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"
