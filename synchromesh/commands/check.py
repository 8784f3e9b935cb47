"""`synchromesh check`: a job held against its data."""

import os
from dataclasses import asdict
from pathlib import Path

import click
from rich.filesize import decimal
from rich.table import Table

from runtime.storage import StorageError
from scheduler import ConfigError, JobConfig, RunDirectoryError
from scheduler.job.paths import with_absolute_paths
from synchromesh.checking import SAMPLE_ROWS, Check, Column, check_job
from synchromesh.commands.answers import Refused, answering, json_option, people_console, print_json
from worker.errors import DataError


@click.command(epilog="Example: synchromesh check jobs/dlrm.yaml --rows 100000")
@click.argument("job", type=click.Path(), metavar="JOB.yaml")
@click.argument("overrides", nargs=-1, metavar="[key.path=value]...")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=SAMPLE_ROWS,
    show_default=True,
    help="Rows that are read at most, spread over the files.",
)
@json_option
def command(job: str, overrides: tuple[str, ...], rows: int, as_json: bool) -> None:
    """Hold a job against its data, without starting it.

    Checks all that training checks before it begins, and reads rows: shares of nulls, keys and
    distinct keys, the label's mean, the memory that a server's tables are expected to take, and
    what training would refuse on the way. Exits 2 where it would refuse something.
    """
    with answering(ConfigError, RunDirectoryError, DataError, StorageError, ValueError):
        config = with_absolute_paths(
            JobConfig.from_yaml(job, list(overrides)), os.environ, Path.cwd()
        )
        found = check_job(config, rows=rows)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found, config.cluster.servers, standby=config.cluster.standby)
    if found.refused:
        raise Refused(
            f"training would refuse {len(found.refused)} of {found.files} files: {found.refused[0]}"
        )


def _show(check: Check, servers: int, *, standby: int) -> None:
    console = people_console()
    mean = "" if check.label_mean is None else f"label mean {check.label_mean:.4f} "
    console.print(
        f"{check.rows:,} rows in {check.files:,} files, {check.batches:,} batches an epoch,"
        f" {check.steps:,} steps; {mean}({check.rows_read:,} rows read)\n"
    )
    table = Table(
        "column", "part", "nulls", "keys a row", "distinct", "expected", "values", box=None
    )
    for column in check.columns:
        table.add_row(
            column.name,
            column.part,
            "-" if column.part == "label" else f"{column.null_rate:.1%}",
            "-" if column.keys is None else f"{column.keys:.2f}",
            "-" if column.distinct is None else f"{column.distinct:,}",
            "-" if column.distinct_expected is None else f"{column.distinct_expected:,}",
            _values(column),
        )
    console.print(table)
    console.print()
    if check.labels is not None and check.labels.rows:
        labels = check.labels
        console.print(
            f"{labels.rows:,} labels read of data.label_stream, mean {labels.label_mean:.4f};"
            f" {labels.of_samples:.1%} are of one of {labels.samples:,} samples read\n"
        )
    table = Table("table", "rows expected", "memory", box=None)
    for each in check.tables:
        table.add_row(each.name, f"{each.rows:,}", decimal(each.memory_bytes))
    console.print(table)
    share = decimal(check.server_memory_bytes)
    processes = servers * (1 + standby)
    where = f"{servers} servers" + (f" and {standby * servers} standbys" if standby else "")
    on = "the one server" if processes == 1 else f"each of {where}"
    console.print(f"\nexpected memory of the tables: {share} on {on}")
    for warning in check.warnings:
        console.print(f"warning: {warning}")


def _values(column: Column) -> str:
    if column.minimum is None:
        return ""
    text = f"{column.minimum:.4g} to {column.maximum:.4g}, mean {column.mean:.4g}"
    if column.part == "label":
        text += f", of {1 - column.null_rate:.1%} of the rows"
    return text
