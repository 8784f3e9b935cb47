"""What a run keeps beside its checkpoints where these lie apart from its directory.

It is enough to go on with the run where the directory is gone. And it says who works on the run:
nothing locks a store, so whoever comes later has it, and the one before ends before it counts
another checkpoint.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.durable import write_text
from runtime.places import Place, open_at, remove_file_at, write_text_at
from runtime.strict_json import json_text

RUN_FILE = "run.json"

UNSEEN_EPOCHS = 1 << 16
"""Recovery epochs that one driver may have gone through and nobody knows of who lacks its disk."""

_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works on a run.

    Args:
        run: the id of the run; None: an earlier version wrote it.
        holder: of the process that holds it, another one each time; None: likewise.
        recovery_epoch: at which that began, see `UNSEEN_EPOCHS`.
        job, pid, host, time: for people.
    """

    run: str | None = None
    holder: str | None = None
    recovery_epoch: int = 0
    job: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    time: float = field(default_factory=time.time)

    @property
    def described(self) -> str:
        """How a person is told of it."""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"process {self.pid} on {self.host}, since {began}"


def holder_at(place: Place) -> Holder | None:
    """Return who works on the run whose checkpoints lie in a place; None: it does not say.

    Raises:
        OSError: the place can't be read.
    """
    try:
        data = json.loads(_bytes_at(place / RUN_FILE) or b"")
        return Holder(**{name: _CHECKS[name](value) for name, value in data.items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _epoch(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31 - 2 * UNSEEN_EPOCHS:
        raise ValueError(f"{value!r} is no recovery epoch")
    return value


def _moment(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < 2**36:
        raise ValueError(f"{value!r} is no time")
    return float(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "run": _text,
    "holder": _text,
    "recovery_epoch": _epoch,
    "job": _text,
    "pid": int,
    "host": _text,
    "time": _moment,
}


def hold(place: Place, holder: Holder) -> None:
    """Say who works on the run from now on; raises OSError."""
    write_text_at(place / RUN_FILE, json_text(asdict(holder), indent=1) + "\n")


def keep(place: Place, run: Path, names: Iterable[str]) -> None:
    """Keep files of the run directory, those that are there; raises OSError."""
    for name in names:
        with suppress(FileNotFoundError):
            write_text_at(place / name, (run / name).read_text())


def forget(place: Place, names: Iterable[str]) -> None:
    """Remove what was kept, as far as it is there; raises OSError."""
    for name in names:
        remove_file_at(place / name)


def fetch(place: Place, run: Path, names: Iterable[str]) -> None:
    """Put what was kept into the run directory, in this order; raises OSError."""
    for name in names:
        data = _bytes_at(place / name)
        if data is not None:
            write_text(run / name, data.decode())


def _bytes_at(place: Place) -> bytes | None:
    """Return a small file; None: it is not there."""
    try:
        file = open_at(place)
    except FileNotFoundError:
        return None
    try:
        if file.size > _MAX_BYTES:
            raise OSError(f"{place} has {file.size} bytes, {_MAX_BYTES} at most were expected")
        return file.read(0, file.size)
    finally:
        file.close()
