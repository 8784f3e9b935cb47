"""Who works in a run directory: one job at a time.

A lock of the operating system on a file in the directory, which ends with the process that holds it
however that ends. Beside it the file says who that is.
"""

import json
import logging
import os
import socket
import time
from pathlib import Path

import filelock

from runtime.durable import write_text
from runtime.strict_json import json_text
from scheduler.errors import RunDirectoryError

LOCK_FILE = ".lease.lock"
HOLDER_FILE = ".lease.json"
LEASE_FILES = frozenset({LOCK_FILE, HOLDER_FILE})

logger = logging.getLogger(__name__)


class RunLease:
    """The right to write in a run directory, held until it is given back or the process ends.

    Args:
        path: the directory, which is there.
        job: name of the job, for others.

    Raises:
        RunDirectoryError: another process holds it; it is said which.
        OSError: the file can't be made.
    """

    def __init__(self, path: Path, *, job: str) -> None:
        self._holder = path / HOLDER_FILE
        self._lock = filelock.FileLock(path / LOCK_FILE, timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunDirectoryError(
                f"run.dir {path} belongs to a job that runs: {_described(self._holder)}. Stop that"
                " job first (synchromesh control RUN_DIR stop), or choose another run.dir"
            ) from None
        except NotImplementedError:
            logger.warning("the file system of %s knows no locks: see to it yourself that only one"
                           " job at a time has this run.dir", path)  # fmt: skip
        facts = {"job": job, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        self._is_held = True
        write_text(self._holder, json_text(facts) + "\n")

    def close(self) -> None:
        """Give it back, once: after that the files are another holder's."""
        if self._is_held:
            self._is_held = False
            self._holder.unlink(missing_ok=True)
            self._lock.release()


def is_held(path: Path) -> bool:
    """Whether a process works in a run directory, as far as its file system tells."""
    lock = filelock.FileLock(path / LOCK_FILE, timeout=0)
    try:
        if not (path / LOCK_FILE).exists():
            return False
        with lock:
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return (path / HOLDER_FILE).exists()


def _described(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text())
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["time"]))
        return f"{facts['job']!r}, process {facts['pid']} on {facts['host']}, since {began}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "it has not said which"
