"""The loop: makes an input from (seed, number), hands it over, and looks at how that ends."""

import contextlib
import resource
import signal
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

SECONDS = 20.0
# An input in so many is looked at more closely: what it allocates, touched or not.
MEASURED_ONE_IN = 50


class WrongResultError(Exception):
    """Something was read from damaged bytes, and it is not what was written."""


class _HangError(BaseException):
    """An input took too long; no `except Exception` takes it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads from outside.

    Args:
        name: of the kind of inputs.
        make: an input from a generator of random numbers.
        read: takes an input; raises WrongResultError for a result that is not right.
        proper: errors that are an answer.
        most_bytes: that reading one input may allocate.
    """

    name: str
    make: Callable[[Random], Any]
    read: Callable[[Any], str | None]
    proper: tuple[type[BaseException], ...]
    most_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Fault:
    """An input that ended otherwise than it may, by which it can be made again."""

    target: str
    seed: int
    number: int
    what: str
    where: str


@dataclass(slots=True)
class Outcome:
    """What many inputs came to: how they ended, by name, and each kind of fault once."""

    inputs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Fault] = field(default_factory=dict)
    seconds: float = 0.0


def input_of(target: Target, seed: int, number: int) -> Any:
    """Make an input; the same for the same numbers."""
    return target.make(Random((seed << 40) + number))


def run(
    target: Target,
    *,
    seed: int,
    inputs: int,
    first: int = 0,
    seconds: float | None = None,
    before: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Hand over so many inputs, or as many as so many seconds allow.

    Args:
        before: told the number of the input that comes next.
    """
    outcome = Outcome()
    began = time.monotonic()
    with _alarm():
        for number in range(first, first + inputs):
            if seconds is not None and time.monotonic() - began > seconds:
                break
            before(number)
            measured = number % MEASURED_ONE_IN == 0
            data = input_of(target, seed, number)
            peak = _peak_bytes()
            end, where = _one(target, data, measured=measured)
            grown = _peak_bytes() - peak
            if grown > target.most_bytes and not where:
                end, where = "took memory", f"the process has grown by {grown >> 20} MiB"
            outcome.inputs += 1
            outcome.ends[end] += 1
            if where:
                outcome.faults.setdefault(
                    f"{end} {where}", Fault(target.name, seed, number, end, where)
                )
    outcome.seconds = time.monotonic() - began
    return outcome


def _one(target: Target, data: Any, *, measured: bool) -> tuple[str, str]:
    """Return how an input ended, and where, if it may not end so."""
    if measured:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        end = target.read(data) or "read"
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            if peak > target.most_bytes:
                return "took memory", f"{peak >> 20} MiB"
        return end, ""
    except target.proper as error:
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            if peak > target.most_bytes:
                return "took memory", f"{peak >> 20} MiB before {type(error).__name__}"
        return type(error).__name__, ""
    except (Exception, _HangError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f[0]]
        at = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.name}" for f in (frame, ours[-1]))
        return type(error).__name__.strip("_"), f"{at}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if measured:
            tracemalloc.stop()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _HangError(f"longer than {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
