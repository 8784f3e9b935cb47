"""`synchromesh report`: the page of a run."""

from pathlib import Path

import click

from runtime.durable import make_folder, write_text
from scheduler import RunDirectoryError
from synchromesh.commands.answers import Refused, answering, json_option, print_json
from synchromesh.outputs import OutputError, check_file_place


@click.command(epilog="Example: synchromesh report runs/dlrm --out dlrm.html")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN_DIR")
@click.option("--out", type=Path, metavar="FILE", help="The page (default: RUN_DIR/report.html).")
@json_option
def command(run: Path, out: Path | None, as_json: bool) -> None:
    """Write one HTML file with charts, figures, tables and the job file, and print its path.

    It needs no network to be looked at. Works on jobs that run or failed too. Needs the extra
    `report` (Bokeh).
    """
    try:
        from scheduler.views.report.page import page_of
        from scheduler.views.report.reading import read_run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "bokeh":
            raise
        raise Refused("charts need Bokeh: pip install 'synchromesh[report]'") from error
    place = out or run / "report.html"
    with answering(OutputError, RunDirectoryError, OSError, failures=()):
        page = page_of(read_run(run))
        check_file_place(place)
    with answering(failures=(OSError,), failed=f"{place} can't be written: "):
        make_folder(place.parent)
        write_text(place, page)
    if as_json:
        print_json({"out": str(place)})
    else:
        click.echo(str(place))
