"""The bearer token of Arrow Flight servers."""

import hmac
from typing import Any

import pyarrow.flight as flight

_SCHEME = "Bearer "


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
