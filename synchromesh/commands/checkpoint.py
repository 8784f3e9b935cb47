"""`synchromesh checkpoint`: what checkpoints there are, and whether they are whole."""

import time
from datetime import timedelta
from pathlib import Path

import click
from rich.filesize import decimal
from rich.table import Table

from ps.checkpoint.manifest import CheckpointError
from scheduler import RunDirectoryError
from synchromesh.checkpoints import as_json as facts_of
from synchromesh.checkpoints import list_checkpoints, open_checkpoint
from synchromesh.commands.answers import answering, json_option, people_console, print_json


@click.group(epilog="Example: synchromesh checkpoint verify runs/dlrm")
def command() -> None:
    """List checkpoints, or verify one."""


@command.command("list", epilog="Example: synchromesh checkpoint list runs/dlrm")
@click.argument("run", type=click.Path(path_type=Path), metavar="CHECKPOINT_OR_RUN")
@json_option
def _list(run: Path, as_json: bool) -> None:
    """Show the finished checkpoints of a run, the oldest first."""
    with answering(CheckpointError, RunDirectoryError):
        found = list_checkpoints(run)
    if as_json:
        print_json([facts_of(each) for each in found])
        return
    table = Table("kind", "step", "lies on", "size", "age", "checkpoint", box=None)
    now = time.time()
    for each in found:
        table.add_row(
            each.kind,
            f"{each.step:,}",
            each.parent or "",
            decimal(each.num_bytes),
            str(timedelta(seconds=max(0, round(now - each.written)))),
            str(each.path),
        )
    people_console().print(table)


@command.command("verify", epilog="Example: synchromesh checkpoint verify runs/dlrm")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT_OR_RUN")
@json_option
def _verify(checkpoint: Path, as_json: bool) -> None:
    """Read every file of a checkpoint, of a run its newest, and compare it with its checksum."""
    with answering(RunDirectoryError, failures=(CheckpointError, OSError)):
        found = open_checkpoint(checkpoint)
        found.verify()
    if as_json:
        print_json({**facts_of(found), "verified": True})
    else:
        click.echo(
            f"{found.path}: step {found.step:,}, {found.num_files:,} files,"
            f" {decimal(found.num_bytes)}, all as they were written"
        )
