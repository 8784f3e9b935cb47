"""Stop processes now and then, and measure in between what the machine can do at that time."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType

import psutil

# Within which a process has to stop: it takes milliseconds, more where no core is free.
STOP_SECONDS = 10.0


def actors() -> list[psutil.Process]:
    """Return the processes below this one in which Ray runs an actor."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if _is_actor(process)]


def _is_actor(process: psutil.Process) -> bool:
    """Tell by the title that Ray gives it: `ray::ServerActor.watch`; without one `ray::IDLE`."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("ray::") and "Actor" in title


@contextmanager
def stopped(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Stop processes until the `with` ends, however it ends; skip those that are gone.

    Raises:
        RuntimeError: one runs on after it was told to stop.
    """
    processes = list(processes)
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in processes:
            _wait_until_stopped(process)
        yield
    finally:
        for process in processes:
            with suppress(psutil.Error):
                process.resume()


def _wait_until_stopped(process: psutil.Process) -> None:
    """Wait, as a process first has to get a core to notice the signal."""
    limit = time.monotonic() + STOP_SECONDS
    with suppress(psutil.NoSuchProcess):
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            if time.monotonic() > limit:
                raise RuntimeError(f"{process} did not stop within {STOP_SECONDS:.0f} s")
            time.sleep(0.001)


class Pauses:
    """Stops processes every so often, from a thread, and measures something meanwhile.

    Args:
        measure: called while they are stopped. Where it raises, they go on and are not stopped
            again, and the error is raised at the end of the `with`.
        processes: returns whom to stop; asked before every stop.
        wanted: says whether to stop them now.
        every_seconds: how long they run between two stops.

    Example:
        with Pauses(measure, actors, wanted, every_seconds=1.2) as pauses:
            train()
        pauses.measured, pauses.seconds
    """

    def __init__(
        self,
        measure: Callable[[], float],
        processes: Callable[[], Iterable[psutil.Process]],
        wanted: Callable[[], bool],
        *,
        every_seconds: float,
    ) -> None:
        self.measured: list[float] = []
        self.seconds = 0.0  # that they were stopped, all stops together
        self._measure, self._processes, self._wanted = measure, processes, wanted
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        # Its thread is waited for even where the program is interrupted: nobody stays stopped.
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Pauses":
        self._work = self._pool.submit(self._stop_now_and_then)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._work.result()

    def _stop_now_and_then(self) -> None:
        while not self._ended.wait(self._every_seconds):
            if self._wanted():
                processes = list(self._processes())
                began = time.perf_counter()
                with stopped(processes):
                    self.measured.append(self._measure())
                self.seconds += time.perf_counter() - began
