"""The token by which Ray knows its user, who can run any code on the cluster: a file of theirs.

Ray writes it when it first starts a cluster on a machine, readable by every user there.
"""

import contextlib
import logging
import os
import re
import secrets
import stat
from pathlib import Path

from ray.exceptions import AuthenticationError

from scheduler.errors import StartError

_log = logging.getLogger(__name__)

_REMEDY = (
    "`ray get-auth-token` prints it on the cluster's head; set RAY_AUTH_MODE=token and"
    " RAY_AUTH_TOKEN to it"
)


def protect_token(*, starts_cluster: bool) -> None:
    """Make the token that Ray would make, but readable by this user alone; warn of one that is not.

    A token that is there is used as it is, and so is whatever Ray's own variables say. Where the
    file can't be made, Ray says so.

    Args:
        starts_cluster: whether Ray would make one where there is none.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if starts_cluster and not named:
            _make(path)
        return
    except OSError:
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning(
            "%s can be read by other users of this machine, who can then run code as you on your"
            " Ray clusters: chmod 600 %s",
            path,
            path,
        )


def check_token(address: str) -> None:
    """Refuse a cluster that asks for a token which this process has not got.

    Ray itself tries for 20 s and then says that it can't connect; the reason is lost in its log.

    Args:
        address: HOST:PORT of the head.

    Raises:
        StartError: it asks for another token, or for one.
    """
    if not re.fullmatch(r".+:\d+", address) or "/" in address:
        return  # Ray has to find out where that is
    named = os.environ.get("RAY_AUTH_MODE", "disabled").lower() == "token"
    if named and not _has_token():
        raise StartError(f"RAY_AUTH_MODE is token, but there is no token: {_REMEDY}")
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        GcsClient(address=address)  # 20 ms; not told to us, so whatever else it raises is nothing
    except AuthenticationError as error:
        given = "the one that it was given is not its own" if named else "none was given"
        raise StartError(
            f"the Ray cluster at {address} (RAY_ADDRESS) asks for a token, and {given}: {_REMEDY}"
        ) from error
    except Exception as error:
        _log.debug("whether %s asks for a token is not known: %s", address, error)


def _has_token() -> bool:
    """Whether Ray would find a token; without one its client ends the process."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return bool(path.read_text().strip())
    except OSError:
        return False


def _make(path: Path) -> None:
    """Write a token whole or not at all: another job may start here at the same time."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(temporary, path)
    except OSError:
        pass  # there is one now, or Ray has to see to it
    with contextlib.suppress(OSError):
        temporary.unlink()
