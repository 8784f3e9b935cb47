"""Whether a Ray cluster answers at an address: Ray itself tries for minutes, or without end."""

import socket

# What a server of HTTP/2, which Ray's is, says first: a frame of type SETTINGS.
_SETTINGS_TYPE = 4


def why_unreachable(address: str, *, seconds: float) -> str | None:
    """Return why no Ray cluster can be reached at HOST:PORT; None: one can.

    Args:
        seconds: for the connection, and for its greeting.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds) as peer:
            peer.settimeout(seconds)
            greeting = peer.recv(9, socket.MSG_WAITALL)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    if len(greeting) < 9 or greeting[3] != _SETTINGS_TYPE:
        return "something else listens there"
    return None
