"""The token by which Ray knows its user, who can run any code on the cluster: a file of theirs.

Ray writes it when it first starts a cluster on a machine, readable by every user there.
"""

import contextlib
import logging
import os
import secrets
import stat
from pathlib import Path

_log = logging.getLogger(__name__)


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
