"""result.json read again: by who goes on with a run that has ended, and by its page."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from scheduler.errors import RunDirectoryError

_NUMBER = (int, float)
_OF_ANY = object
# What those who read it use, by its type; of objects and lists also the type of what is in them.
_TYPES: Mapping[str, tuple[Any, Any]] = {
    "name": (str, _OF_ANY),
    "mode": (str, _OF_ANY),
    "checkpoint": (str, _OF_ANY),
    "model_digest": (str, _OF_ANY),
    "global_step": (int, _OF_ANY),
    "samples_trained": (int, _OF_ANY),
    "samples_dropped": (int, _OF_ANY),
    "samples_skipped": (int, _OF_ANY),
    "skipped_by_reason": (dict, int),
    "skipped_files": (dict, list),
    "train_seconds": (_NUMBER, _OF_ANY),
    "samples_per_second": (_NUMBER, _OF_ANY),
    "dense_non_finite": (int, _OF_ANY),
    "worker_restarts": (int, _OF_ANY),
    "tables": (dict, dict),
    "eval": ((dict, NoneType), (*_NUMBER, str, dict, NoneType)),
    "evaluations": (list, dict),
    "mode_history": (list, dict),
    "recoveries": (list, dict),
    "scalings": (list, dict),
    "drains": (list, dict),
    "server_moves": (list, dict),
    "stream": ((dict, NoneType), _OF_ANY),
}
# Without these nobody can go on from it; versions before did not write all of the others.
_REQUIRED = (
    "checkpoint", "dense_non_finite", "eval", "evaluations", "global_step", "model_digest",
    "samples_dropped", "samples_per_second", "samples_skipped", "samples_trained",
    "skipped_by_reason", "skipped_files", "tables", "train_seconds",
)  # fmt: skip


def read_result(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Read a result.json.

    Args:
        whole: whether it must have all that a job's end shows, as today's version writes it.

    Raises:
        RunDirectoryError: it can't be read, or is not what a job writes; it says what of it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} can't be read: {error}") from error
    if (wrong := _wrong_with(value, whole=whole)) is not None:
        raise RunDirectoryError(f"{path} is damaged, it is no result of a job: {wrong}")
    result: dict[str, Any] = value
    return result


def _wrong_with(value: Any, *, whole: bool) -> str | None:
    if not isinstance(value, dict):
        return "it is no JSON object"
    if whole and (missing := [name for name in _REQUIRED if name not in value]):
        return f"it lacks {', '.join(missing)}"
    for name, (kinds, inside) in _TYPES.items():
        if name not in value:
            continue
        found = value[name]
        if not _is(found, kinds):
            return f"{name} can't be {found!r:.80}"
        each = found.values() if isinstance(found, dict) else found
        if isinstance(found, dict | list) and not all(_is(one, inside) for one in each):
            return f"{name} can't hold {next(one for one in each if not _is(one, inside))!r:.80}"
    return None


def _is(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and (kinds is _OF_ANY or not isinstance(value, bool))
