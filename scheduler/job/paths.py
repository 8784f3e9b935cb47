"""Relative paths of a job file, made absolute before any other process sees them.

Inside `ray job submit` the working directory is an uploaded copy that is thrown away, so a
relative path there would point to nothing useful: it is refused, or resolved against
SYNCHROMESH_ROOT where that is set.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.model import EmbeddingConfig, TableConfig
from worker.data.data_files import table_name

Tabled = TypeVar("Tabled", EmbeddingConfig, TableConfig)

ROOT_VARIABLE = "SYNCHROMESH_ROOT"


def inside_ray_job(environment: Mapping[str, str]) -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment


def with_absolute_paths(config: JobConfig, environment: Mapping[str, str], cwd: Path) -> JobConfig:
    """Return the job with every local path absolute; raises ConfigError where it must not be."""
    root = environment.get(ROOT_VARIABLE)
    submitted = inside_ray_job(environment)

    def absolute(field: str, path: str) -> str:
        table = table_name(path)
        if table is not None and not table.in_catalog:
            return str(replace(table, place=absolute(field, table.place)))
        if table is not None or "://" in path:
            return path
        path = os.path.expanduser(path)
        if os.path.isabs(path):
            return path
        if root is not None:
            return os.path.normpath(os.path.join(root, path))
        if submitted:
            raise ConfigError(
                f"{field}: {path!r} is relative, and inside a Ray job the working directory is an"
                f" uploaded copy. Give it whole, such as {'/path/on/the/cluster/' + path!r}, or set"
                f" {ROOT_VARIABLE} to the folder that it is relative to"
            )
        return os.path.normpath(os.path.join(cwd, path))

    data = config.data.model_copy(
        update={
            "train": config.data.train
            and [absolute("data.train", path) for path in config.data.train],
            "eval": config.data.eval and [absolute("data.eval", path) for path in config.data.eval],
        }
    )
    for section in ("stream", "label_stream"):
        stream = getattr(config.data, section)
        if stream is not None:
            names = ("dir", "archive", "client_file", "avro_schema")
            given = {name: getattr(stream, name, None) for name in names}
            paths = {n: absolute(f"data.{section}.{n}", path) for n, path in given.items() if path}
            data = data.model_copy(update={section: stream.model_copy(update=paths)})
    init_from, checkpoints = config.run.init_from, config.checkpoint.path
    if "://" in config.run.dir:
        raise ConfigError(
            "run.dir must be a path of a file system that every node sees, got"
            f" {config.run.dir!r}. What may be URLs is checkpoint.path, run.init_from, data.train"
            " and data.eval"
        )
    run = config.run.model_copy(
        update={
            "dir": absolute("run.dir", config.run.dir),
            "init_from": init_from and absolute("run.init_from", init_from),
        }
    )
    publish = config.checkpoint.publish
    if publish is not None and publish.token_file is not None:
        file = absolute("checkpoint.publish.token_file", publish.token_file)
        publish = publish.model_copy(update={"token_file": file})
    checkpoint = config.checkpoint.model_copy(
        update={
            "path": checkpoints and absolute("checkpoint.path", checkpoints),
            "publish": publish,
        }
    )
    tables = {
        name: _with_tiers(table, f"tables.{name}", absolute)
        for name, table in config.tables.items()
    }
    sections = {
        "data": data,
        "run": run,
        "checkpoint": checkpoint,
        "embedding": _with_tiers(config.embedding, "embedding", absolute),
        "tables": tables,
    }
    return config.model_copy(update=sections)


def _with_tiers(section: Tabled, field: str, absolute: Callable[[str, str], str]) -> Tabled:
    """Return a section with the folder of its tiers absolute, where it has some."""
    tiers = section.tiers
    if tiers is None:
        return section
    if "://" in tiers.path:
        raise ConfigError(
            f"{field}.tiers.path must be a folder on a disk of each server, got {tiers.path!r}"
        )
    path = absolute(f"{field}.tiers.path", tiers.path)
    return section.model_copy(update={"tiers": replace(tiers, path=path)})
