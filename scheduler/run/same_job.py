"""Whether a job file is of the job that a run directory holds: what decides model and data is same.

How many processes there are, what is written when and what is shown may be otherwise.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError

# Field by field rather than by section, so that a new one is of the job until it is said here.
_MAY_DIFFER = (
    "name",
    "data.cache_bytes",
    "data.stream.archive",
    "data.stream.brokers",
    "data.stream.client_file",
    "data.stream.close_seconds",
    "data.stream.group",
    "data.stream.late_seconds",
    "data.stream.on_lost",
    "data.stream.poll_seconds",
    "data.stream.settle_seconds",
    "data.stream.trained_files",
    "data.label_stream.archive",
    "data.label_stream.brokers",
    "data.label_stream.client_file",
    "data.label_stream.group",
    "data.label_stream.late_seconds",
    "data.label_stream.max_waiting",
    "data.label_stream.on_lost",
    "data.label_stream.settle_seconds",
    "data.label_stream.trained_files",
    "training.begin_in_sync",  # a run that goes on has begun
    "training.online",
    "training.mixed_cpus",
    "cluster",
    "checkpoint.every_steps",
    "checkpoint.every_seconds",
    "checkpoint.full_every",
    "checkpoint.keep",
    "checkpoint.compression",
    "checkpoint.publish",
    "run.dir",
    "run.overwrite",
    "run.resume",
    "run.progress_every_seconds",
    "run.allow_faults",
    "run.tensorboard",
)
_TIERS = re.compile(r"(embedding|tables\..+)\.tiers(\.|$)")
_MISSING = object()
# That are named in one message, and characters of a value there.
MOST_FIELDS = 5
MOST_OF_A_VALUE = 100


def check_same_job(job_file: Path, config: JobConfig) -> JobConfig:
    """Hold a job against the one whose run it is to go on with, and return that one.

    Args:
        job_file: that the run directory has.

    Raises:
        ConfigError: the file can't be read, or a field that decides the model or the data differs;
            each is named with both values.
    """
    try:
        before = JobConfig.from_yaml(job_file)
    except ConfigError as error:
        raise ConfigError(f"run.resume: the job of the run can't be read: {error}") from error
    found = differences(before, config)
    if found:
        raise ConfigError(
            f"run.resume: {job_file.parent} holds another job: {_listed(found)}. Keep what"
            " decides the model and the data as it was, or choose another run.dir"
        )
    return before


def _listed(found: list[str]) -> str:
    more = len(found) - MOST_FIELDS
    return "; ".join(found[:MOST_FIELDS]) + (f"; and {more} more fields differ" if more > 0 else "")


def differences(before: JobConfig, now: JobConfig) -> list[str]:
    """Return a text for each field of two jobs that may not differ, and does."""
    was, value = dict(_fields(_values(before))), dict(_fields(_values(now)))
    names = [name for name in {**was, **value} if not _may_differ(name)]
    return [
        f"{name} is {_text(value, name)}, it was {_text(was, name)}"
        for name in names
        if was.get(name, _MISSING) != value.get(name, _MISSING)
    ]


def _values(config: JobConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    # Its default comes from the number of workers, which may be another one.
    values["training"]["global_batch"] = config.global_batch
    return values


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that is no mapping and no list of mappings, with its path."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [(str(number), item) for number, item in enumerate(value)]
    if not items:
        yield path, value
    for name, item in items:
        yield from _fields(item, f"{path}.{name}" if path else name)


def _may_differ(name: str) -> bool:
    # Where rows are, memory or disk, changes nothing of them.
    if _TIERS.match(name):
        return True
    return any(name == free or name.startswith(f"{free}.") for free in _MAY_DIFFER)


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name, _MISSING)
    if value is _MISSING or value is None:
        return "not given"
    text = repr(value)
    return text if len(text) <= MOST_OF_A_VALUE else f"{text[: MOST_OF_A_VALUE - 3]}..."
