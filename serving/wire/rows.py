"""The row form, as users of TensorFlow Serving know it.

{"instances": [{"user": 7, "tags": ["a", "b"]}, ...]}   ->  {"predictions": [0.12, ...]}
{"inputs": {"user": [7, ...], "tags": [["a", "b"], ...]}}  ->  {"outputs": [0.12, ...]}
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import RequestError, cut
from serving.requests import RequestSchema
from serving.wire.json_text import parsed, text
from worker.data.batch import Batch

_KNOWN = {"instances", "inputs", "signature_name"}


def decode(body: bytes, schema: RequestSchema) -> tuple[Batch, str]:
    """Return the samples, and under which name the answer has their predictions.

    Raises:
        RequestError: what is wrong with it.
    """
    request = parsed(body)
    unknown = sorted(request.keys() - _KNOWN)
    if unknown:
        raise RequestError(f"a request has no {cut(unknown[0])!r}; it has instances, or inputs")
    if ("instances" in request) == ("inputs" in request):
        raise RequestError("a request has either instances, a list of rows, or inputs, columns")
    if "instances" in request:
        rows = request["instances"]
        if not isinstance(rows, list):
            raise RequestError("instances must be a list of rows, each {column: value}")
        return schema.batch_of_rows(rows), "predictions"
    columns = request["inputs"]
    if not isinstance(columns, dict):
        raise RequestError("inputs must be an object {column: values}")
    return schema.batch_of_columns(columns), "outputs"


def encode(values: npt.NDArray[np.float32], name: str, about: dict[str, Any]) -> bytes:
    """Return the answer; each probability is written so that float32 of it is the same again."""
    return text({name: numbers_of(values), "metadata": about})


def numbers_of(values: npt.NDArray[np.float32]) -> list[float]:
    """Return the shortest decimals that are these float32 numbers."""
    return [float(np.format_float_scientific(value)) for value in values]
