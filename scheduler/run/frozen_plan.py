"""The plans of a job's data as its run directory keeps them: sealed, to go on with the same."""

import json
from pathlib import Path
from typing import Any

from ps.checkpoint.sealed_json import SEAL, sealed_text, unsealed
from runtime.durable import write_text
from scheduler.errors import RunDirectoryError
from worker.data.plan import Plan


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan with its checksum."""
    text, _ = sealed_text(plan.to_json())
    write_text(path, text)


def read_plan(path: Path) -> Plan:
    """Read a plan back.

    Raises:
        RunDirectoryError: it is not there, not whole, or not what was written.
    """
    try:
        data: Any = json.loads(path.read_bytes())
        if not isinstance(data, dict) or SEAL not in data:
            raise ValueError("it has no checksum of itself")
        return Plan.from_json(unsealed(data))
    except OSError as error:
        raise RunDirectoryError(
            f"{path} can't be read, and without it nobody knows which batches are trained:"
            f" {error.strerror or error}"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path} is damaged, and without it nobody knows which batches are trained: {error}"
        ) from error
