"""`synchromesh checkpoint`: what checkpoints there are, what they hold, whether they are whole."""

import time
from dataclasses import asdict
from datetime import timedelta

import click
from rich.filesize import decimal
from rich.table import Table

from scheduler import RunDirectoryError
from synchromesh.checkpoints import (
    Checkpoint,
    compact_checkpoint,
    compare,
    details_of,
    list_checkpoints,
    open_checkpoint,
)
from synchromesh.checkpoints import as_json as facts_of
from synchromesh.commands.answers import Failed, answering, json_option, people_console, print_json
from synchromesh.importing import ImportedRowsError, import_rows
from synchromesh.outputs import OutputError


@click.group(epilog="Example: synchromesh checkpoint verify runs/dlrm")
def command() -> None:
    """List, show, verify, compare or compact checkpoints, or give them rows; no job has to run."""


@command.command("list", epilog="Example: synchromesh checkpoint list runs/dlrm")
@click.argument("run", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@json_option
def _list(run: str, as_json: bool) -> None:
    """Show the finished checkpoints of a run, the oldest first; errors name the damaged ones."""
    damaged: list[str] = []
    with answering(RunDirectoryError):
        found = list_checkpoints(run, damaged.append)
    if as_json:
        print_json([facts_of(each) for each in found])
    elif found:
        _show_list(found)
    if damaged:
        raise Failed("\nerror: ".join(damaged))


def _show_list(found: list[Checkpoint]) -> None:
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


@command.command("show", epilog="Example: synchromesh checkpoint show runs/dlrm")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@json_option
def _show(checkpoint: str, as_json: bool) -> None:
    """Show what a checkpoint is, of a run its newest; the keys of a delta's chain are counted."""
    with answering(RunDirectoryError, failures=(OSError,)):
        found = open_checkpoint(checkpoint)
        details = details_of(found)
    if as_json:
        print_json(details)
        return
    console = people_console()
    ordered = "sorted" if details["sorted"] else "by groups of buckets"
    goes_on = "can" if details["can_be_gone_on_from"] else "can't"
    console.print(f"{found.path}: {found.kind}, step {found.step:,}")
    console.print(
        f"recovery epoch {details['recovery_epoch']}, {found.dense_size:,} dense parameters, rows"
        f" {ordered}; training {goes_on} go on from here"
    )
    for name, value in details["job"].items():
        if isinstance(value, str | int | float):
            console.print(f"{name}: {value}")
    chain = Table("read from", "step", "files", "size", box=None)
    for each in details["chain"]:
        size = decimal(each["bytes"])
        chain.add_row(each["checkpoint"], f"{each['step']:,}", f"{each['files']:,}", size)
    console.print(chain)
    tables = Table("table", "dim", "optimizer", "rows", "unadmitted", "files", box=None)
    for name, each in details["tables"].items():
        unadmitted = "" if each["unadmitted"] is None else f"{each['unadmitted']:,}"
        size = decimal(each["file_bytes"])
        tables.add_row(
            name, str(each["dim"]), each["optimizer"], f"{each['rows']:,}", unadmitted, size
        )
    console.print(tables)


@command.command("verify", epilog="Example: synchromesh checkpoint verify runs/dlrm")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@json_option
def _verify(checkpoint: str, as_json: bool) -> None:
    """Read every file of a checkpoint, of a run its newest, and compare it with its checksum.

    Of a delta those of all that it lies on, too.
    """
    with answering(RunDirectoryError, failures=(OSError,)):
        found = open_checkpoint(checkpoint)
        found.verify()
    if as_json:
        print_json({**facts_of(found), "chain": found.chain, "verified": True})
    else:
        below = found.chain[1:]
        lies_on = f" with {len(below):,} that it lies on" if below else ""
        click.echo(
            f"{found.path}{lies_on}: step {found.step:,}, {found.chain_files:,} files,"
            f" {decimal(found.chain_bytes)}, all as they were written"
        )


@command.command("diff", epilog="Example: synchromesh checkpoint diff runs/a runs/b")
@click.argument("before", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("after", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@json_option
def _diff(before: str, after: str, as_json: bool) -> None:
    """Compare two checkpoints: rows of each table, and the dense parameters.

    Rows are the same where vector, slots, frequency and version are, bit for bit.
    """
    with answering(RunDirectoryError, failures=(OSError,)):
        found = compare(before, after)
    if as_json:
        print_json(asdict(found))
        return
    table = Table("table", "added", "removed", "changed", "same", box=None)
    for each in found.tables:
        counts = (each.added, each.removed, each.changed, each.same)
        table.add_row(each.name, *(f"{count:,}" for count in counts))
    console = people_console()
    console.print(table)
    norm = "of another number" if found.dense_norm is None else f"{found.dense_norm:.6g} apart"
    console.print(f"dense parameters: {norm}")


@command.command(
    "import-rows",
    epilog="Example: synchromesh checkpoint import-rows runs/old item=items.parquet --out runs/new",
)
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("files", nargs=-1, required=True, metavar="TABLE=FILE...")
@click.option("--out", type=click.Path(), required=True, help="The new checkpoint's folder.")
@json_option
def _import_rows(checkpoint: str, files: tuple[str, ...], out: str, as_json: bool) -> None:
    """Write a checkpoint whose tables have rows of Parquet files beside their own.

    A file has the columns key, as the training data have it, and vector, a list of floats. A job
    begins with them by run.init_from.
    """
    named = [file.partition("=") for file in files]
    tables = {table: file for table, _, file in named}
    if any(not table or not file for table, _, file in named) or len(tables) < len(files):
        raise click.UsageError(
            f"{' '.join(files)}: name a file for each table, once: TABLE=FILE, such as"
            " item=items.parquet"
        )
    with answering(OutputError, RunDirectoryError, ImportedRowsError, failures=(OSError,)):
        path, digest, rows = import_rows(checkpoint, tables, out)
    if as_json:
        print_json({"checkpoint": str(path), "model_digest": digest, "rows": rows})
        return
    told = ", ".join(f"{count:,} rows of {table}" for table, count in rows.items())
    click.echo(f"{path}: written with {told}, model digest {digest}")


@command.command(
    "compact",
    epilog="Example: synchromesh checkpoint compact runs/dlrm/checkpoints/delta-000000000120",
)
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.option(
    "--out",
    type=click.Path(),
    help="The new folder; where it is there already, one with a number. Default: beside it.",
)
@json_option
def _compact(checkpoint: str, out: str | None, as_json: bool) -> None:
    """Write a delta with all that it lies on as one full checkpoint; nothing is removed."""
    with answering(OutputError, RunDirectoryError, failures=(OSError,)):
        path, digest = compact_checkpoint(checkpoint, out)
    if as_json:
        print_json({"checkpoint": str(path), "model_digest": digest})
    else:
        click.echo(f"{path}: written, model digest {digest}")
