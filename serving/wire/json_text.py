"""JSON as requests have it, strict."""

import json
from typing import Any

from serving.errors import RequestError


def parsed(body: bytes | memoryview) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        RequestError: it is not JSON, or no object. NaN and infinity are no JSON.
    """
    try:
        found = json.loads(bytes(body), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = str(error) or "it is nested too deeply"
        raise RequestError(f"the body is not valid JSON: {text[:200]}") from error
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; write null")


def text(value: Any) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
