"""Runs a kind in a process of its own, which what it reads may kill."""

import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzzing.kinds import target_of
from fuzzing.run import SECONDS, Fault, Outcome, run

# Deaths after which a kind is given up: what lies behind them is not seen.
_MOST_DEATHS = 20


def run_apart(
    kind: str,
    *,
    seed: int,
    inputs: int,
    work: Path,
    seconds: float | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """Hand over inputs of a kind in another process; a death is a fault, and it goes on after it.

    Args:
        work: an empty folder.
    """
    whole = Outcome()
    first = 0
    for attempt in range(_MOST_DEATHS):
        folder = work / str(attempt)
        folder.mkdir()
        found, reached, death = _run(
            kind, (seed, inputs - first, first, seconds), folder, checkpoint
        )
        if found is not None:
            _add(whole, found)
            break
        what = Fault(kind, seed, reached, "died", death)
        _add(whole, Outcome(reached + 1 - first, faults={f"died {death}": what}))
        first = reached + 1
    return whole


def _run(
    kind: str, numbers: tuple[Any, ...], work: Path, checkpoint: Path | None
) -> tuple[Outcome | None, int, str]:
    """Return the outcome, or None with the number of the input that killed the process, and how."""
    context = multiprocessing.get_context("spawn")
    reached = context.Value("q", numbers[2], lock=False)
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(kind, numbers, work, checkpoint, reached, theirs), daemon=True
    )
    process.start()
    theirs.close()
    found = None
    try:
        while process.is_alive() and not ours.poll(SECONDS):
            pass
        found = ours.recv()
    except EOFError:
        pass
    process.join()
    code = process.exitcode or 0
    death = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return found, reached.value, death


def _work(
    kind: str,
    numbers: tuple[Any, ...],
    work: Path,
    checkpoint: Path | None,
    reached: Any,
    pipe: Connection,
) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    seed, inputs, first, seconds = numbers

    def before(number: int) -> None:
        reached.value = number
        # Of an input that never comes back from a library, which no signal handler interrupts.
        signal.setitimer(signal.ITIMER_VIRTUAL, 6 * SECONDS)

    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    target = target_of(kind, work, checkpoint)
    outcome = run(target, seed=seed, inputs=inputs, first=first, seconds=seconds, before=before)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    pipe.send(outcome)


def _add(whole: Outcome, part: Outcome) -> None:
    whole.inputs += part.inputs
    whole.ends += part.ends
    whole.seconds += part.seconds
    for name, fault in part.faults.items():
        whole.faults.setdefault(name, fault)
