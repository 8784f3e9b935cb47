"""`synchromesh predict`: probabilities for the rows of Parquet files."""

import click
import pyarrow as pa

from synchromesh.commands.answers import FAILURES, answering, json_option, names, print_json
from synchromesh.prediction import BAD_INPUT, predict
from worker.errors import UnreadableError


@click.command(
    epilog="Example: synchromesh predict runs/dlrm data/criteo-like/test predictions.parquet"
)
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT_OR_RUN")
@click.argument("input", type=click.Path(), metavar="INPUT")
@click.argument("output", type=click.Path(), metavar="OUTPUT")
@click.option(
    "--columns",
    callback=names,
    default="",
    metavar="A,B",
    help="Columns of INPUT to carry over to OUTPUT (default: none).",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT.")
@json_option
def command(
    checkpoint: str, input: str, output: str, columns: list[str], overwrite: bool, as_json: bool
) -> None:
    """Write the probability of label 1 for every row of INPUT, in its order; print a line of JSON.

    INPUT is a file, folder, glob, URL or table, as data.train; the label need not be in it. OUTPUT,
    a local file, has the column `prediction` (float32) after those of --columns, of a model of
    several tasks a column `prediction_TASK` for each, and appears whole or not at all.
    """
    with answering(
        *BAD_INPUT,
        failures=(*FAILURES, pa.ArrowException),
        failed=f"failed, {output} was not written: ",
        interrupted=f"interrupted, {output} was not written",
    ):
        try:
            line = predict(checkpoint, input, output, columns=columns, overwrite=overwrite)
        except UnreadableError as error:
            error.remedy = "Write the file again"  # no row can be left out here
            raise
    print_json(line)
