"""What our Arrow Flight servers do with a call: ask for the bearer token, say what fails."""

import hmac
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

_SCHEME = "Bearer "

_log = logging.getLogger(__name__)


class TokenRequired(flight.ServerMiddlewareFactory):
    """Refuses every call that does not bear the token, before it is begun."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        for value in headers.get("authorization", []):
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            given = text.removeprefix(_SCHEME).encode("latin-1", "replace")
            if text.startswith(_SCHEME) and hmac.compare_digest(given, self._token):
                return
        raise flight.FlightUnauthenticatedError("the token is missing or wrong")


@contextmanager
def only_flight_errors() -> Iterator[None]:
    """Let a handler raise nothing but errors of Flight.

    Any other error reaches the client with a traceback and the paths of the server's files (pyarrow
    26). One of Arrow is about what the client sent, and is told; any other one is logged here.
    """
    try:
        yield
    except flight.FlightError:
        raise
    except pa.ArrowException as error:
        raise flight.FlightServerError(f"what was sent can't be read: {error}") from error
    except Exception as error:
        _log.exception("a call failed")
        text = "the server failed at this call; its log says at what"
        raise flight.FlightInternalError(text) from error
