"""The file by which tools find a running job; read without Ray, so that it can say how to join."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtime.growing_files import metrics_files
from scheduler.errors import NotRunningError, RunDirectoryError
from scheduler.run.directory import (
    CONTROL_FILE,
    FAILURE_FILE,
    JOB_FILE,
    RESULT_FILE,
    latest_checkpoint,
)
from scheduler.run.reaching import why_unreachable

_FACTS = ("auth_mode", "coordinator", "namespace", "ray_address")
# Ray's head answers a connection at once; the time is for the network.
PROBE_SECONDS = 1.0
# A line of metrics with a thousand workers has some 60 KB.
_TAIL_BYTES = 1 << 20


def find_job(run: Path) -> dict[str, Any]:
    """Return where the job that runs in a run directory is to be found.

    Raises:
        NotRunningError: none runs there.
    """
    if not (run / JOB_FILE).exists():
        raise NotRunningError(f"{run} is not a run directory: it has no {JOB_FILE}")
    for name, text in ((RESULT_FILE, "has ended"), (FAILURE_FILE, "ended before its end")):
        if (run / name).exists():
            raise NotRunningError(f"the job of {run} {text}; see {run / name}")
    path = run / CONTROL_FILE
    try:
        facts = json.loads(path.read_bytes())
    except OSError as error:
        raise NotRunningError(
            f"no job runs in {run}, or it is still starting: {path}: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise NotRunningError(f"{path} is damaged: it is not valid JSON: {error}") from error
    texts = facts if isinstance(facts, dict) else {}
    missing = [name for name in _FACTS if not isinstance(texts.get(name), str)]
    if missing:
        raise NotRunningError(f"{path} is damaged: it has no text for {', '.join(missing)}")
    return facts


def use_its_authentication(facts: dict[str, Any]) -> None:
    """Let Ray, which is not loaded yet, ask for a token where the job's cluster wants one.

    Ray does so by itself where it starts a cluster, but not where it joins one.
    """
    os.environ.setdefault("RAY_AUTH_MODE", facts["auth_mode"])


def check_reachable(run: Path, facts: dict[str, Any]) -> None:
    """See whether a Ray cluster answers at a job's address, which Ray itself tries for minutes.

    Raises:
        NotRunningError: none does; says what is known of the job.
    """
    cause = why_unreachable(str(facts["ray_address"]), seconds=PROBE_SECONDS)
    if cause is not None:
        raise unreachable(run, facts, cause)


def unreachable(run: Path, facts: dict[str, Any], cause: str) -> NotRunningError:
    """Return the error for a job whose Ray cluster does not answer."""
    return NotRunningError(
        f"the Ray cluster of {run} at {facts['ray_address']} can't be reached: {cause}. The job was"
        f" perhaps killed; else run this where the cluster can be reached. {last_known(run)}"
    )


def last_known(run: Path) -> str:
    """Say what the run directory tells of a job that can't be asked."""
    line = last_metrics(run, ("time", "mode", "global_step", "samples"))
    if line is None:
        told = "It has written no metrics"
    else:
        ago = max(0.0, time.time() - line["time"])
        told = (
            f"It last wrote metrics {ago:,.0f} s ago: mode {line['mode']}, step"
            f" {line['global_step']:,}, {line['samples']:,} samples"
        )
    try:
        return f"{told}. Newest checkpoint: {latest_checkpoint(run)}"
    except (RunDirectoryError, OSError):
        return f"{told}. It has written no checkpoint"


def last_metrics(run: Path, fields: Iterable[str]) -> dict[str, Any] | None:
    """Return the last whole line of the metrics that has some fields, or None."""
    needed = set(fields)
    try:
        files = metrics_files(run)
    except OSError:
        return None
    for line in (line for file in reversed(files) for line in _last_lines(file)):
        try:
            found: dict[str, Any] = json.loads(line)
            if needed <= set(found):
                return found
        except (ValueError, TypeError):
            continue  # the last one was cut off
    return None


def _last_lines(path: Path) -> list[bytes]:
    """Return the lines at the end of a file, the last one first."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().splitlines()[::-1]
    except OSError:
        return []
