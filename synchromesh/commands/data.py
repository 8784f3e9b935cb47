"""`synchromesh data`: data sets as Parquet."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import pyarrow as pa
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from runtime.storage import NoSuchFileError, lie_in_one_another
from synchromesh.commands.answers import Refused, answering, json_option, print_json, read_token
from worker.data.kafka_client import read_client_file
from worker.datasets.convert import Layout, convert_criteo, convert_movielens
from worker.datasets.delayed_labels import LabelDelay
from worker.datasets.files import DatasetError
from worker.datasets.replay import replay
from worker.datasets.synthetic import CriteoLike, write_criteo_like
from worker.datasets.targets import FolderTarget, KafkaTarget, ReceiverTarget, Target

DEFAULT = Layout()


@click.group(epilog="Example: synchromesh data criteo-like --rows 1000000 --out data/criteo-like")
def command() -> None:
    """Make data sets: public ones converted to Parquet, or generated ones."""


def _laid_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that both converters have."""
    for option in (
        click.option("--out", type=Path, required=True, help="Folder of the data set."),
        click.option("--row-group-rows", default=DEFAULT.row_group_rows, show_default=True),
        click.option("--rows-per-file", default=DEFAULT.rows_per_file, show_default=True),
        click.option("--overwrite", is_flag=True, help="Replace a data set in --out."),
        json_option,
    ):
        function = option(function)
    return function


def _writing(out: Path) -> Any:
    return answering(
        DatasetError,
        failures=(OSError,),
        failed=f"cannot write {out}: ",
        interrupted="interrupted, nothing was written",
    )


@command.command(
    "convert-criteo",
    epilog="Example: synchromesh data convert-criteo train.txt --out data/criteo",
)
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT..."
)
@click.option("--test-fraction", default=0.1, show_default=True, help="The last rows.")
@click.option("--no-split", is_flag=True, help="All rows to train/.")
@_laid_out
def _convert_criteo(
    inputs: tuple[Path, ...],
    out: Path,
    test_fraction: float,
    no_split: bool,
    row_group_rows: int,
    rows_per_file: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert Criteo's tab-separated files (Kaggle train.txt, 1 TB day_N[.gz]) to Parquet."""
    with _writing(out):
        layout = Layout(
            row_group_rows=row_group_rows, rows_per_file=rows_per_file, overwrite=overwrite
        )
        fraction = None if no_split else test_fraction
        rows = convert_criteo(list(inputs), out, test_fraction=fraction, layout=layout)
    print_json({"out": str(out), "rows": rows})


@command.command(
    "convert-movielens",
    epilog="Example: synchromesh data convert-movielens ml-1m --out data/ml-1m",
)
@click.argument("input_dir", type=click.Path(path_type=Path), metavar="INPUT_DIR")
@_laid_out
def _convert_movielens(
    input_dir: Path,
    out: Path,
    row_group_rows: int,
    rows_per_file: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert MovieLens (ml-1m or ml-latest, unpacked) to Parquet, split by time."""
    with _writing(out):
        layout = Layout(
            row_group_rows=row_group_rows, rows_per_file=rows_per_file, overwrite=overwrite
        )
        rows = convert_movielens(input_dir, out, layout=layout)
    print_json({"out": str(out), "rows": rows})


@command.command(
    "criteo-like",
    epilog="Example: synchromesh data criteo-like --rows 1000000 --out data/criteo-like",
)
@click.option("--rows", type=int, required=True, help="Train rows.")
@click.option("--test-rows", type=int, help="Default: a tenth of the train rows.")
@click.option("--files", default=8, show_default=True, help="Train files.")
@click.option("--out", type=Path, required=True, help="Folder of the data set.")
@click.option("--seed", default=7, show_default=True, help="The rows depend on it alone.")
@click.option("--row-group-rows", default=1 << 16, show_default=True)
@click.option("--purchases", is_flag=True, help="Add a second label, buy, of clicks alone.")
@click.option("--histories", is_flag=True, help="Add an item, and what its user has seen.")
@click.option("--overwrite", is_flag=True, help="Replace a data set in --out.")
@json_option
def _criteo_like(
    rows: int,
    test_rows: int | None,
    files: int,
    out: Path,
    seed: int,
    row_group_rows: int,
    purchases: bool,
    histories: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write Criteo-like samples from a planted model, with the best possible AUC beside them."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), "rows", TimeRemainingColumn())
    with _writing(out):
        wanted = CriteoLike(
            rows=rows,
            test_rows=test_rows,
            files=files,
            seed=seed,
            row_group_rows=row_group_rows,
            purchases=purchases,
            histories=histories,
        )
        hidden = as_json or not console.is_terminal
        with Progress(*columns, console=console, disable=hidden) as progress:
            task = progress.add_task("rows", total=wanted.all_rows)
            about = write_criteo_like(
                out,
                wanted,
                overwrite=overwrite,
                on_rows=lambda rows: progress.advance(task, rows),
            )
    shown = ("rows", "test_rows", "seed", "base_rate", "best_auc", "best_logloss")
    beside = {}
    if purchases:
        for of in ("of_clicks", "of_impressions"):
            beside[f"buy_{of}"] = {name: about["purchases"][of][name] for name in shown[3:]}
    print_json({"out": str(out), **{name: about[name] for name in shown}, **beside})


TOKEN_VARIABLE = "SYNCHROMESH_RECEIVE_TOKEN"
_token_option = click.option(
    "--token-file",
    type=click.Path(),
    metavar="FILE",
    help=f"Holds the token of a receiver (default: ${TOKEN_VARIABLE}).",
)


def _token(file: str | None) -> str:
    token = read_token("--token-file", file, TOKEN_VARIABLE)
    if token is None:
        raise Refused(f"a receiver wants a token: give --token-file, or set ${TOKEN_VARIABLE}")
    return token


@command.command(
    "receive",
    epilog="Example: synchromesh data receive --to stream --token-file token --port 8815",
)
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), help="Local folder of a stream."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8815, show_default=True, help="0: a free one."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.01, max=60),
    default=1.0,
    show_default=True,
    help="Seconds after which what a producer has sent is a file, at most.",
)
@click.option(
    "--most-producers", type=click.IntRange(1, 1000), default=32, show_default=True, help="At once."
)
@click.option("--certificate", type=click.Path(), help="Chain in PEM: what is sent is encrypted.")
@click.option("--key", type=click.Path(), help="The certificate's private key in PEM.")
@_token_option
@json_option
def _receive(
    to: Path,
    host: str,
    port: int,
    every: float,
    most_producers: int,
    certificate: str | None,
    key: str | None,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Take rows from producers by Arrow Flight, into a folder that a job on a stream trains.

    Runs until SIGINT or SIGTERM. A batch is acknowledged once it is on the disk; docs/online.md.
    """
    from worker.datasets.flight_server import FlightReceiver  # and with it gRPC

    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    token = _token(token_file)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with answering(OSError, ValueError):
        pair = (
            (Path(certificate).read_bytes(), Path(key).read_bytes())
            if certificate and key
            else None
        )
        receiver = FlightReceiver(
            to,
            host=host,
            port=port,
            token=token,
            every_seconds=every,
            most_producers=most_producers,
            certificate=pair,
            note=lambda text: click.echo(f"note: {text}", err=True),
        )
    if as_json:
        print_json({"location": receiver.location, "to": str(to)})
    else:
        click.echo(f"receiving at {receiver.location} into {to}; end it with Ctrl-C")
    over.wait()
    receiver.close()
    sys.stdout.flush()
    os._exit(0)  # gRPC would wait for connections that nobody may ever close


class _Seconds(click.FloatRange):
    """A number in a range; NaN, which is in every range to click, is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


_OF_LABELS = {
    "label_columns": "--label-column",
    "key_column": "--key-column",
    "label_delays": "--label-delay",
    "delays": "--delays",
    "seed": "--seed",
}


def _check_labels_of_replay(to: str, labels_to: str | None) -> None:
    """Refuse options of labels that go nowhere, and labels that would come among samples."""
    context = click.get_current_context()
    if labels_to is None:
        given = [
            option
            for name, option in _OF_LABELS.items()
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT
        ]
        if given:
            raise click.UsageError(
                f"{given[0]} is about labels of a stream of their own, which --labels-to names"
            )
        return
    if lie_in_one_another(labels_to, to):
        raise click.UsageError(
            f"--labels-to {labels_to!r} and --to {to!r} lie in one another, so labels would be"
            " taken for samples; choose places beside each other"
        )


@command.command(
    "replay",
    epilog="Example: synchromesh data replay 'data/clicks/*.parquet' --to stream --rate 5000",
)
@click.argument("inputs", nargs=-1, required=True, metavar="FILES...")
@click.option(
    "--to",
    required=True,
    help="Folder (path or URL) in which files appear, kafka://HOST:PORT/TOPIC, or"
    " grpc://HOST:PORT of `synchromesh data receive`.",
)
@click.option("--rate", type=_Seconds(min=0, min_open=True), required=True, help="Rows/s.")
@click.option(
    "--every",
    type=_Seconds(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds from one file, or burst of messages, to the next.",
)
@click.option("--loops", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--time-column", help="A column that gets the time at which a row was written.")
@click.option("--number-column", help="A column that gets a number that no other row has.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["arrow", "json"]),
    default="arrow",
    show_default=True,
    help="Of messages: IPC streams of up to 1,000 rows, or a row each.",
)
@click.option(
    "--client-file",
    type=click.Path(dir_okay=False),
    help="Settings of the client of Kafka, as data.stream.client_file.",
)
@click.option("--name", default="replay", show_default=True, help="Of the producer, to a receiver.")
@click.option(
    "--labels-to",
    help="Where the labels of positives go, some time after their rows, which are written without:"
    " a place as --to.",
)
@click.option(
    "--label-column",
    "label_columns",
    multiple=True,
    default=("label",),
    show_default=True,
    help="Which holds them; several are told apart, each once it is due.",
)
@click.option(
    "--key-column",
    default="sample_id",
    show_default=True,
    help="By which samples find their labels; rows are numbered where they lack it.",
)
@click.option(
    "--label-delay",
    "label_delays",
    type=_Seconds(min=0),
    multiple=True,
    default=(10.0,),
    show_default=True,
    help="Seconds from a row to its label, or their mean; one for all columns, or one for each.",
)
@click.option(
    "--delays",
    type=click.Choice(["exponential", "fixed"]),
    default="exponential",
    show_default=True,
    help="How they are spread.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of delays.")
@_token_option
@json_option
def _replay(
    inputs: tuple[str, ...],
    to: str,
    rate: float,
    every: float,
    loops: int,
    time_column: str | None,
    number_column: str | None,
    form: Literal["arrow", "json"],
    client_file: str | None,
    name: str,
    labels_to: str | None,
    label_columns: tuple[str, ...],
    key_column: str,
    label_delays: tuple[float, ...],
    delays: Literal["exponential", "fixed"],
    seed: int,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Write recorded rows at a steady rate, as if they happened now.

    Into a folder each file is written whole, named by the time: a job on a stream trains it as it
    comes.
    """
    _check_labels_of_replay(to, labels_to)
    if len(label_delays) == 1:
        label_delays *= len(label_columns)
    if len(label_delays) != len(label_columns) or len({*label_columns}) < len(label_columns):
        raise click.UsageError(
            f"--label-column names {', '.join(label_columns)}, and --label-delay"
            f" {', '.join(map(str, label_delays))}: name each column once, and one delay for all of"
            " them, or one for each, in their order"
        )
    failures = (OSError, pa.ArrowException)
    with answering(
        ValueError, ImportError, NoSuchFileError, failures=failures, failed="cannot replay: "
    ):

        def target(to: str, name: str) -> Target:
            if to.startswith("kafka://"):
                return KafkaTarget(to, form=form, settings=read_client_file(client_file))
            if to.startswith(("grpc://", "grpc+tls://")):
                return ReceiverTarget(to, name=name, token=_token(token_file))
            return FolderTarget(to)

        written = replay(
            inputs,
            target(to, name),
            rate=rate,
            every_seconds=every,
            loops=loops,
            time_column=time_column,
            number_column=number_column,
            labels_to=None if labels_to is None else target(labels_to, f"{name}-labels"),
            label_delay=LabelDelay(
                labels=label_columns,
                key=key_column,
                seconds=label_delays,
                kind=delays,
                seed=seed,
            ),
            on_part=lambda place, rows: None if as_json else click.echo(f"{place} {rows}"),
        )
    if as_json:
        print_json({"rows": written, "to": to})
