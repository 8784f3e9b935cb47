"""The row form, as users of TensorFlow Serving know it.

{"instances": [{"user": 7, "tags": ["a", "b"]}, ...]}   ->  {"predictions": [0.12, ...]}
{"inputs": {"user": [7, ...], "tags": [["a", "b"], ...]}}  ->  {"outputs": [0.12, ...]}

Of a model of several tasks the answers are {"predictions": [{"click": 0.12, "buy": 0.01}, ...]}
and {"outputs": {"click": [0.12, ...], "buy": [0.01, ...]}}.

What all samples have in common may stand once in front of either:

{"context": {"user": 7}, "instances": [{"tags": ["a", "b"]}, ...]}
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.errors import RequestError, cut
from serving.requests import RequestSchema, Samples
from serving.wire.json_text import parsed, text_of_finite

_FEW = 24
_KNOWN = {"context", "instances", "inputs", "signature_name"}


def decode(body: bytes, schema: RequestSchema) -> tuple[Samples, str]:
    """Return the samples, and under which name the answer has their predictions.

    Raises:
        RequestError: what is wrong with it.
    """
    request = parsed(body)
    unknown = sorted(request.keys() - _KNOWN)
    if unknown:
        raise RequestError(
            f"a request has no {cut(unknown[0])!r}; it has instances or inputs, and a context"
        )
    if ("instances" in request) == ("inputs" in request):
        raise RequestError("a request has either instances, a list of rows, or inputs, columns")
    context = request.get("context", {})
    if not isinstance(context, dict):
        raise RequestError("context must be an object {column: value}, what all samples share")
    if "instances" in request:
        rows = request["instances"]
        if not isinstance(rows, list):
            raise RequestError("instances must be a list of rows, each {column: value}")
        return schema.batch_of_rows(rows, context), "predictions"
    columns = request["inputs"]
    if not isinstance(columns, dict):
        raise RequestError("inputs must be an object {column: values}")
    shared = {name: [value] for name, value in context.items()}
    return schema.batch_of_columns(columns, shared), "outputs"


def encode(
    values: npt.NDArray[np.float32],
    name: str,
    about: dict[str, Any],
    outputs: Sequence[str] = (),
) -> bytes:
    """Return the answer; each probability is written so that float32 of it is the same again.

    Args:
        values: float32[n], of several tasks float32[n, tasks].
        name: `predictions`, row by row, or `outputs`, by column.
        outputs: names of the tasks.
    """
    if values.ndim == 1:
        return text_of_finite({name: _listed(numbers_of(values)), "metadata": about})
    columns = {task: numbers_of(values[:, at]) for at, task in enumerate(outputs)}
    if name == "outputs":
        lists = {task: _listed(numbers) for task, numbers in columns.items()}
        return text_of_finite({name: lists, "metadata": about})
    rows = [
        dict(zip(outputs, map(msgspec.Raw, map(str.encode, row)), strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    return text_of_finite({name: rows, "metadata": about})


def numbers_of(values: npt.NDArray[np.float32]) -> list[str]:
    """Return the shortest decimals that are these float32 numbers."""
    if len(values) < _FEW:  # Arrow takes longer to begin
        return [str(value) for value in values]
    return [_with_point(each) for each in pa.array(values).cast(pa.string()).to_pylist()]


def _listed(numbers: list[str]) -> msgspec.Raw:
    return msgspec.Raw(f"[{','.join(numbers)}]".encode())


def _with_point(number: str) -> str:
    """Return a number so that readers who tell integers from others take it for none."""
    return number if "." in number or "e" in number else f"{number}.0"
