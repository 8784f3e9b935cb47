"""What the benchmarks' command lines share: lists of names, and how they end."""

import argparse
import signal
import sys
from collections.abc import Callable


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument's type: names of `known` with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"knows {', '.join(known)}, got {name!r}")
        return names

    return read


def finish(work: Callable[[], None]) -> int:
    """Work, and return the exit code: 2 for a wrong call, 1 for a job that failed."""
    # `timeout` and the like don't leave the jobs that were started behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # of training or of a process that was started
        print(f"error: a job failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
