"""The file by which tools find a running job; read without Ray, so that it can say how to join."""

import json
import os
from pathlib import Path
from typing import Any

from scheduler.errors import ControlError
from scheduler.run_files import CONTROL_FILE, FAILURE_FILE, JOB_FILE, RESULT_FILE


def find_job(run: Path) -> dict[str, Any]:
    """Return where the job that runs in a run directory is to be found.

    Raises:
        ControlError: none runs there.
    """
    if not (run / JOB_FILE).exists():
        raise ControlError(f"{run} is not a run directory: it has no {JOB_FILE}")
    for name, text in ((RESULT_FILE, "has ended"), (FAILURE_FILE, "ended before its end")):
        if (run / name).exists():
            raise ControlError(f"the job of {run} {text}; see {run / name}")
    try:
        facts: dict[str, Any] = json.loads((run / CONTROL_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ControlError(
            f"no job runs in {run}, or it is still starting: it has no {CONTROL_FILE}"
        ) from error
    missing = {"ray_address", "namespace", "auth_mode", "coordinator"} - set(facts)
    if missing:
        raise ControlError(f"{run / CONTROL_FILE} has no {', '.join(sorted(missing))}")
    return facts


def use_its_authentication(facts: dict[str, Any]) -> None:
    """Let Ray, which is not loaded yet, ask for a token where the job's cluster wants one.

    Ray does so by itself where it starts a cluster, but not where it joins one.
    """
    os.environ.setdefault("RAY_AUTH_MODE", facts["auth_mode"])
