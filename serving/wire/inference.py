"""The Open Inference Protocol, version 2, with its binary tensor extension.

A tensor is a column of the job: of shape [n] or [n, 1] a value for each sample, of [n, k] a list of
k. Lists of other lengths come as one tensor of all their values, [m] or [m, 1], and a second one,
`NAME:lengths`, of n integers. A tensor of one value, or one list, is what all samples share.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.calls import OUTPUT
from serving.errors import RequestError, shown
from serving.requests import RequestSchema, Samples
from serving.wire.json_text import parsed, text_of_finite

LENGTHS = ":lengths"
_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_MOST_BEGUN = 256
_NOT_OF_TYPE = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the answer is to be given.

    Args:
        id: of the request.
        outputs: names of those that it has, and whether each is given as bytes and not as JSON.
    """

    id: str | None
    outputs: tuple[tuple[str, bool], ...]


def decode(body: bytes, json_bytes: int | None, schema: RequestSchema) -> tuple[Samples, Wanted]:
    """Return the samples of a request, and how it wants its answer.

    Raises:
        RequestError: what is wrong with it.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes"
        )
    view = memoryview(body)
    head = parsed(view if json_bytes is None else view[:json_bytes])
    rest = view[len(body) if json_bytes is None else json_bytes :]
    tensors = _entries(head.get("inputs"), "inputs")
    arrays: dict[str, tuple[pa.Array, tuple[int, ...]]] = {}
    start = 0
    for tensor in tensors:
        name, shape, size = _described(tensor, schema)
        if name in arrays:
            raise RequestError(f"input {name!r} is there twice")
        if size is None:
            array = _from_json(name, tensor["datatype"], tensor.get("data"), shape)
        else:
            if start + size > len(rest):
                raise RequestError(
                    f"input {name!r} has {size} bytes, only {len(rest) - start} are left"
                )
            data = rest[start : start + size]
            array = _from_bytes(name, tensor["datatype"], data, shape)
            start += size
        arrays[name] = (array, shape)
    if start != len(rest):
        raise RequestError(f"{len(rest) - start} bytes follow the last binary input")
    wanted = _wanted(head, schema.outputs)
    columns = _columns(arrays, schema)
    context = {}
    if max((len(array) for array in columns.values()), default=0) > 1:
        context = {name: array for name, array in columns.items() if len(array) == 1}
    own = {name: array for name, array in columns.items() if name not in context}
    return schema.batch_of_columns(own, context), wanted


def described(
    head: bytes, schema: RequestSchema
) -> list[tuple[str, str, tuple[int, ...], int | None]]:
    """Return name, datatype, shape and size in bytes of each tensor; None: it is in the JSON.

    Raises:
        RequestError: as `decode`.
    """
    found = []
    for tensor in _entries(parsed(head).get("inputs"), "inputs"):
        name, shape, size = _described(tensor, schema)
        found.append((name, str(tensor["datatype"]), shape, size))
    return found


def _entries(found: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise RequestError(f"{name} must be a list of tensors")
    return found


def _described(
    tensor: dict[str, Any], schema: RequestSchema
) -> tuple[str, tuple[int, ...], int | None]:
    """Return name, shape and, of a binary tensor, its size."""
    name, shape = tensor.get("name"), tensor.get("shape")
    if not isinstance(name, str):
        raise RequestError("an input must have a name")
    schema.check_known(name if name in schema.columns else name.removesuffix(LENGTHS))
    legal = isinstance(shape, list) and all(type(axis) is int and axis >= 0 for axis in shape)
    if not isinstance(shape, list) or not legal or len(shape) not in (1, 2):
        raise RequestError(
            f"input {name!r} must have a shape of one or two axes, got {shown(shape)}"
        )
    kind = tensor.get("datatype")
    if kind != "BYTES" and (not isinstance(kind, str) or kind not in _DTYPES):
        raise RequestError(
            f"input {name!r} must have a datatype of {', '.join([*_DTYPES, 'BYTES'])}, got"
            f" {shown(kind)}"
        )
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(f"input {name!r}: binary_data_size must be a number of bytes")
    if size is None and "data" not in tensor:
        raise RequestError(f"input {name!r} has no data")
    return name, tuple(shape), size


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def _from_bytes(name: str, kind: str, data: memoryview, shape: tuple[int, ...]) -> pa.Array:
    count = _count(shape)
    if kind == "BYTES":
        return _strings(name, data, count)
    dtype = np.dtype(_DTYPES[kind])
    if len(data) != count * dtype.itemsize:
        raise RequestError(
            f"input {name!r} of shape {list(shape)} and datatype {kind} has {len(data)} bytes,"
            f" expected {count * dtype.itemsize}"
        )
    return pa.array(np.frombuffer(data, dtype))


def _strings(name: str, data: memoryview, count: int) -> pa.Array:
    """Read strings, each after its length in 4 bytes."""
    if count * 4 > len(data):
        raise RequestError(f"input {name!r} has {len(data)} bytes for {count} strings")
    values = []
    at = 0
    for _ in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + size > len(data):
            raise RequestError(f"input {name!r}: a string ends after the tensor")
        values.append(bytes(data[at : at + size]))
        at += size
    if at != len(data):
        raise RequestError(f"input {name!r}: {len(data) - at} bytes follow its last string")
    return pa.array(values, pa.binary())


def _from_json(name: str, kind: str, data: Any, shape: tuple[int, ...]) -> pa.Array:
    if not isinstance(data, list):
        raise RequestError(f"input {name!r}: data must be a list")
    if data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise RequestError(f"input {name!r}: data must be flat, or a list of lists")
        data = [value for row in data for value in row]
    if len(data) != _count(shape):
        raise RequestError(
            f"input {name!r} of shape {list(shape)} has {len(data)} values,"
            f" expected {_count(shape)}"
        )
    if kind == "BYTES":
        if not all(isinstance(value, str) for value in data):
            raise RequestError(f"input {name!r} of datatype BYTES must have strings")
        try:
            return pa.array(data, pa.string())
        except UnicodeEncodeError as error:
            raise RequestError(f"input {name!r} has a string with half a character") from error
    arrow = pa.from_numpy_dtype(np.dtype(_DTYPES[kind]))
    if kind == "BOOL" or bool not in set(map(type, data)):
        with contextlib.suppress(*_NOT_OF_TYPE):
            return pa.array(data, arrow)
    number = next((i for i, value in enumerate(data) if not _is_of(value, arrow)), 0)
    raise RequestError(
        f"input {name!r}: value {number}, {shown(data[number])}, is not of datatype {kind}"
    )


def _is_of(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, bool) and not pa.types.is_boolean(kind):
        return False
    try:
        pa.array([value], kind)
    except _NOT_OF_TYPE:
        return False
    return True


def _columns(
    arrays: Mapping[str, tuple[pa.Array, tuple[int, ...]]], schema: RequestSchema
) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name, (array, shape) in arrays.items():
        if name.endswith(LENGTHS) and name.removesuffix(LENGTHS) in schema.columns:
            if name.removesuffix(LENGTHS) not in arrays:
                raise RequestError(f"input {name!r} is there without {name[: -len(LENGTHS)]!r}")
            continue
        lengths = arrays.get(name + LENGTHS)
        if lengths is not None:
            columns[name] = _ragged(name, array, lengths[0])
        elif len(shape) == 2 and shape[1] != 1:
            offsets = np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), array)
        else:
            columns[name] = array
    return columns


def _ragged(name: str, array: pa.Array, lengths: pa.Array) -> pa.Array:
    if not pa.types.is_integer(lengths.type):
        raise RequestError(f"input {name + LENGTHS!r} must have integers")
    sizes = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if (sizes < 0).any() or (sizes > len(array)).any() or offsets[-1] != len(array):
        raise RequestError(
            f"input {name + LENGTHS!r} must be numbers >= 0 that sum to the {len(array)} values"
            f" of {name!r}"
        )
    return pa.LargeListArray.from_arrays(pa.array(offsets), array)


def _wanted(head: dict[str, Any], known: Sequence[str]) -> Wanted:
    ident = head.get("id")
    if ident is not None and not isinstance(ident, str):
        raise RequestError("id must be a string")
    parameters = head.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    if "outputs" not in head:
        return Wanted(ident, tuple((name, binary) for name in known))
    found: dict[str, bool] = {}
    for output in _entries(head["outputs"], "outputs"):
        name = output.get("name")
        if not isinstance(name, str) or name not in known:
            one = len(known) == 1
            raise RequestError(
                f"the model has one output, {known[0]!r}"
                if one
                else f"the model has no output {shown(name)}; it has {', '.join(known)}"
            )
        own = output.get("parameters")
        found[name] = binary
        if isinstance(own, dict) and "binary_data" in own:
            found[name] = own["binary_data"] is True
    return Wanted(ident, tuple(found.items()) or tuple((name, binary) for name in known))


def encode(
    values: npt.NDArray[np.float32],
    wanted: Wanted,
    name: str,
    about: dict[str, Any],
    outputs: Sequence[str] = (OUTPUT,),
) -> tuple[bytes, int | None]:
    """Return the answer, and how much of it is JSON where bytes follow.

    Args:
        values: float32[n], of several tasks float32[n, tasks].
        outputs: what the columns of values are called.
    """
    columns = dict(zip(outputs, values.reshape(len(values), len(outputs)).T, strict=True))
    told: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output, binary in wanted.outputs:
        column = columns[output]
        its: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": [len(values)]}
        if binary:
            tensors.append(column.astype("<f4").tobytes())
            its["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            its["data"] = column.astype(np.float64).tolist()
        told.append(its)
    answer: dict[str, Any] = {
        "model_name": name,
        "model_version": str(about["step"]),
        "outputs": told,
    }
    if wanted.id is not None:
        answer["id"] = wanted.id
    answer["parameters"] = about
    head = text_of_finite(answer)
    return (b"".join([head, *tensors]), len(head)) if tensors else (head, None)


class Encoder:
    """Answers as `encode` does; what it says of tensors in bytes is kept from answer to answer.

    Args:
        name: of the model.
        outputs: what the columns of values are called.
    """

    def __init__(self, name: str, outputs: Sequence[str]) -> None:
        self._name = name
        self._outputs = tuple(outputs)
        self._begun: dict[Any, bytes] = {}

    def encode(
        self, values: npt.NDArray[np.float32], wanted: Wanted, about: dict[str, Any]
    ) -> tuple[bytes, int | None]:
        """As `encode`."""
        key = (wanted.outputs, len(values), about["step"])
        begun = self._begun.get(key)
        if begun is None:
            plain = Wanted(None, wanted.outputs)
            answer, size = encode(values, plain, self._name, about, self._outputs)
            if size is None or not all(binary for _, binary in wanted.outputs):
                return encode(values, wanted, self._name, about, self._outputs)
            if len(self._begun) >= _MOST_BEGUN:
                self._begun.clear()
            begun = self._begun[key] = answer[: size - len(_end_of(about))]
        named = b"" if wanted.id is None else b',"id":' + text_of_finite(wanted.id)
        head = begun + named + _end_of(about)
        if len(self._outputs) == 1:
            return head + values.astype("<f4", copy=False).tobytes(), len(head)
        places = [self._outputs.index(output) for output, _ in wanted.outputs]
        return head + values.T[places].astype("<f4").tobytes(), len(head)


def _end_of(about: dict[str, Any]) -> bytes:
    """Return the last part of an answer's JSON."""
    return b',"parameters":' + text_of_finite(about) + b"}"


def metadata(name: str, schema: RequestSchema, versions: list[str]) -> dict[str, Any]:
    """Return what the protocol says of a model.

    The shape of lists is that of lists of one length, [n, k]; see above for those of several.
    """
    features = schema.features
    inputs: list[dict[str, Any]] = [
        {"name": each, "datatype": "FP32", "shape": [-1]} for each in features.dense
    ]
    for feature in features.sparse:
        kind = "BYTES" if schema.kinds.get(feature.name) == "string" else "INT64"
        # Of other columns nobody knows whether they are lists: both are taken of all.
        lists = feature.combiner == "none" or (feature.max_length, feature.pad) != (None, None)
        shape = [-1, -1] if lists else [-1]
        inputs.append({"name": feature.column, "datatype": kind, "shape": shape})
        if feature.weights is not None:
            inputs.append({"name": feature.weights, "datatype": "FP32", "shape": shape})
    unique = {each["name"]: each for each in inputs}
    return {
        "name": name,
        "versions": versions,
        "platform": "synchromesh",
        "inputs": list(unique.values()),
        "outputs": [{"name": each, "datatype": "FP32", "shape": [-1]} for each in schema.outputs],
    }
