"""JSON as requests have it, strict."""

import json
from collections import Counter
from typing import Any

from serving.errors import RequestError, cut

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def parsed(body: bytes | memoryview) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        RequestError: it is not JSON, or no object, or an object has a name twice. NaN and infinity
            are no JSON.
    """
    try:
        found = json.loads(
            bytes(body).decode("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except RequestError:
        raise
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise _not_json(_where(error)) from error
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error
    except ValueError as error:
        raise _not_json("an integer has too many digits") from error
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object")
    return found


def _not_json(reason: str) -> RequestError:
    return RequestError(f"the body is not valid JSON: {reason}")


def _where(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()):
        return "it ends too early" if error.doc.strip() else "it is empty"
    return f"it breaks at line {error.lineno}, column {error.colno}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise RequestError(f"{cut(twice)!r} is there twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise _not_json(f"{name} is no JSON; write null")


def text(value: Any) -> bytes:
    """Return compact JSON."""
    return _ENCODER.encode(value).encode()
