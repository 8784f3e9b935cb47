"""`synchromesh init`: a first job file."""

from pathlib import Path

import click

from runtime.durable import make_folder, write_text
from runtime.storage import StorageError
from synchromesh.commands.answers import Refused, answering, json_option, print_json
from synchromesh.guessing import job_for
from synchromesh.outputs import OutputError, check_file_place
from worker.errors import DataError


@click.command(epilog="Example: synchromesh init data/clicks.parquet --out jobs/clicks.yaml")
@click.argument("data", nargs=-1, required=True, type=click.Path(), metavar="DATA...")
@click.option("--out", type=Path, metavar="JOB.yaml", help="The job file (default: print it).")
@click.option("--overwrite", is_flag=True, help="Replace the job file.")
@json_option
def command(data: tuple[str, ...], out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write a commented job file for Parquet files, a folder, a glob, a URL or a table.

    Looks at the first rows and guesses which column is the label, which are numbers and which are
    ids; each guess is explained beside the column. Hold it against all rows with `synchromesh
    check`.
    """
    if out is not None and out.exists() and not overwrite:
        raise Refused(f"{out} exists; use --overwrite, or name another file")
    if out is not None:
        with answering(OutputError):
            check_file_place(out)
    with answering(DataError, StorageError):
        text = job_for(data, name=out.stem if out is not None else "first")
    if out is not None:
        with answering(failures=(OSError,), failed=f"{out} can't be written: "):
            make_folder(out.parent)
            write_text(out, text)
    if as_json:
        print_json({"out": None if out is None else str(out), "job": text})
    else:
        click.echo(text if out is None else str(out), nl=out is not None)
