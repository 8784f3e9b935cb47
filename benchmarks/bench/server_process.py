"""A server in a child process, which tells how much CPU time it has used."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

Address = TypeVar("Address")


class ServerProcess(Generic[Address]):
    """One server; it ends with `close`, or with this process.

    Args:
        start: called there with `arguments`; starts serving in threads and says where.
    """

    def __init__(self, start: Callable[..., Address], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        process_arguments = (other, start, arguments)
        self._process = context.Process(target=_serve, args=process_arguments, daemon=True)
        self._process.start()
        other.close()
        self.address: Address = self._pipe.recv()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far."""
        self._pipe.send("cpu")
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10.0)


def _serve(pipe: Connection, start: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(start(*arguments))
        while True:
            pipe.recv()
            pipe.send(time.process_time())
    except (EOFError, OSError):
        pass  # the other end is closed or gone
