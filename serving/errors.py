"""What can go wrong in serving, as callers tell it apart, and how much of a request it shows."""

import json
from typing import Any

_SHOWN = 80
WRONG, BUSY = b"400", b"429"
"""What errors of Arrow Flight have beside their text: it lies with the request, or come again."""


class ServingError(ValueError):
    """A model can't be served, or a version of it can't be used."""


class RequestError(ValueError):
    """A request is not one that the model takes; the message says what was expected."""


class OverloadError(RuntimeError):
    """More requests wait than may; come again a little later."""


class DeadlineError(RuntimeError):
    """A request's time was over before it was computed."""


def shown(value: Any) -> str:
    """Return what an error shows of a value that came as JSON: its beginning, as JSON."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=True)
    except (TypeError, ValueError, RecursionError):
        written = type(value).__name__
    return cut(written)


def cut(written: str) -> str:
    """Return a text as it is, or its beginning where it is longer than errors should have it."""
    return written if len(written) <= _SHOWN else written[:_SHOWN] + "..."
