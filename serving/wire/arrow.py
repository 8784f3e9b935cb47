"""Requests and answers as Arrow: a stream of IPC with one record batch each.

The request has the job's columns, the answer one column `prediction`, of a model of several tasks
one for each by its name; what is said of the version
stands in the metadata of its schema, as JSON under `about`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.strict_json import json_text
from serving.errors import RequestError
from serving.requests import RequestSchema, Samples

_ABOUT = b"about"


def written(batch: pa.RecordBatch) -> bytes:
    """Return a batch with its schema as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode(body: bytes, schema: RequestSchema) -> Samples:
    """Return the samples of a request.

    Raises:
        RequestError: what is wrong with it.
    """
    try:
        with pa.ipc.open_stream(body) as reader:
            batch = reader.read_next_batch()
            batch.validate(full=True)
    except (pa.ArrowException, StopIteration, OSError) as error:
        raise RequestError(f"this is no record batch: {error}") from error
    check_columns(batch.schema, schema)
    return schema.batch_of_columns(dict(zip(batch.schema.names, batch.columns, strict=True)))


def check_columns(given: pa.Schema, schema: RequestSchema) -> None:
    """Refuse columns that are missing, not known or there twice.

    Raises:
        RequestError: names the first one.
    """
    names = given.names
    schema.check_names(names)
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"column {name!r} is there {names.count(name)} times")


def answer_schema(outputs: Sequence[str]) -> pa.Schema:
    """Return the columns of an answer, by the names of what is predicted."""
    return pa.schema([pa.field(name, pa.float32(), nullable=False) for name in outputs])


def encode(values: npt.NDArray[np.float32], about: dict[str, Any], outputs: Sequence[str]) -> bytes:
    """Return the answer; values: float32[n], of several tasks float32[n, tasks]."""
    schema = answer_schema(outputs).with_metadata({_ABOUT: json_text(about)})
    columns = np.ascontiguousarray(values.reshape(len(values), len(outputs)).T)
    return written(pa.record_batch([pa.array(each) for each in columns], schema=schema))


def answered(body: bytes) -> tuple[pa.RecordBatch, bytes]:
    """Return the predictions of an answer, and what it says of their version, as JSON."""
    with pa.ipc.open_stream(body) as reader:
        batch = reader.read_next_batch()
    about: bytes = batch.schema.metadata[_ABOUT]
    json.loads(about)
    return batch.replace_schema_metadata(None), about
