"""A request and its answer as bytes, between whoever listens and whoever computes."""

from dataclasses import dataclass, field
from typing import Literal

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"

OUTPUT = "prediction"
"""What the probability of a model of one label is called."""

Form = Literal["infer", "rows", "arrow"]


@dataclass(slots=True)
class Call:
    """One request for predictions.

    Args:
        form: `infer` of the Open Inference Protocol, `rows`, or a record batch of `arrow`.
        body: as it was sent.
        json_bytes: how much of an `infer` body is JSON, tensors follow; None: all of it.
        deadline: on the monotonic clock, after which nobody waits any more.
    """

    form: Form
    body: bytes
    json_bytes: int | None
    deadline: float


@dataclass(slots=True)
class Answer:
    """What a request gets.

    Args:
        status: of HTTP.
        body: its bytes.
        content_type: of the body.
        headers: further ones.
        rows: samples that were predicted.
        step: that the prediction is of; -1 where there is none.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0
    step: int = -1
