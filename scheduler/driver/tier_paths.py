"""Whether tiers can be had as a job wants them, before anything starts."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedding.spec.table import TableSpec
from embedding.spec.tiers import Tiers
from embedding.table.precision import stored_width
from embedding.table.tier_extents import TierError, check_folder
from embedding.table.tiered_values import shares_of
from scheduler.driver.launch import starts_ray
from scheduler.job.errors import ConfigError


def check_tiers(tiers: Mapping[str, Tiers], tables: Sequence[TableSpec]) -> None:
    """Look at the tiers of tables, and at their folders where servers run on this machine.

    On a cluster they are on the servers' nodes, where a server that can't use one does not begin.

    Raises:
        ConfigError: memory_bytes has no room for a few rows, or a folder is not there, can't be
            written, or has less room than its tables have in memory.
    """
    for table in tables:
        if table.name in tiers:
            try:
                shares_of(tiers[table.name], stored_width(table), name=f"table {table.name}")
            except ValueError as error:
                raise ConfigError(str(error)) from error
    if not starts_ray():
        return
    for path in sorted({each.path for each in tiers.values()}):
        name = next(name for name, each in tiers.items() if each.path == path)
        where = f"tiers.path of table {name}"
        if not Path(path).is_dir():
            raise ConfigError(
                f"{where} is {path}, which is no folder; make it, or name another one"
            )
        try:
            check_folder(path)
        except TierError as error:
            raise ConfigError(f"{where} is {path}: {error}") from error
        needed = sum(each.memory_bytes for each in tiers.values() if each.path == path)
        free = shutil.disk_usage(path).free
        if free < needed:
            raise ConfigError(
                f"{where} is {path}, which has {free:,} bytes free: less than the {needed:,} that"
                " memory_bytes of its tables come to, and more is to be on the disk. Name a folder"
                " on another disk, or where all rows fit into memory leave tiers out"
            )
