"""Updates that do not touch each other's arrays: run in turn, or each on a thread of its own.

A shard's tables and its dense parameters are such. Which way they are run changes no result: in
`sync` a worker waits for both, and then one core more is free to work on them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

RunAll = Callable[[Sequence[Callable[[], None]]], None]


def in_turn(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks one after another, in their order."""
    for task in tasks:
        task()


class Threads:
    """Runs tasks at the same time: the first where it is called, each other on a thread.

    Returns, or raises what the first of them raised, once all have ended. After `close` they are
    run in turn.
    """

    def __init__(self, most_tasks: int) -> None:
        self._pool = ThreadPoolExecutor(most_tasks - 1, thread_name_prefix="update")
        self._closed = False

    def __call__(self, tasks: Sequence[Callable[[], None]]) -> None:
        if self._closed:
            in_turn(tasks)
            return
        others = [self._pool.submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            wait(others)
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads; not while tasks are run."""
        self._closed = True
        self._pool.shutdown()
