"""`synchromesh serve`: a trained model behind an HTTP endpoint."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from synchromesh.commands.answers import (
    FAILURES,
    Refused,
    answering,
    json_option,
    print_json,
    read_token,
)
from synchromesh.commands.sizes import Bytes
from worker.inference import ModelError

if TYPE_CHECKING:
    from serving.form.making import BaseProgress
    from serving.running import ServeOptions, Serving

_FIRST_TOLD_SECONDS, _TOLD_SECONDS = 2.0, 5.0
TOKEN_VARIABLE = "SYNCHROMESH_SERVE_TOKEN"
PUBLISH_VARIABLE = "SYNCHROMESH_PUBLISH_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The command's arguments and options, by name."""

    source: str
    name: str
    host: str
    port: int
    flight_port: int | None
    sessions: int
    max_batch: int
    max_delay_ms: float
    max_waiting: int
    max_rows: int
    max_body_mib: int
    max_connections: int
    timeout_seconds: float
    follow_seconds: float | None
    keep_versions: int
    forms: str | None
    rows: Literal["float32", "bf16", "int8"]
    memory: int | None
    data: tuple[str, ...]
    force: bool
    token_file: str | None
    publish_token_file: str | None
    access_log: str | None
    as_json: bool


@click.command(epilog="Example: synchromesh serve runs/dlrm --port 8500")
@click.argument("source", type=click.Path(), metavar="RUN_OR_CHECKPOINT")
@click.option("--name", default="model", show_default=True, help="Of the model, in paths.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0: a free one."
)
@click.option(
    "--flight-port",
    type=click.IntRange(0, 65535),
    help="Where to listen for streams of Arrow Flight, 0: a free one (default: nowhere).",
)
@click.option(
    "--sessions",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Processes that compute, each on a core of its own; 0: the server's own process.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Samples from which on no further request is added to a batch.",
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(0, 10_000),
    default=0.0,
    show_default=True,
    help="How long a request may wait for others to be computed with.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait for a session; further ones are refused with 429.",
)
@click.option(
    "--max-rows",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    help="Samples of one request.",
)
@click.option(
    "--max-body-mib", type=click.IntRange(1, 1024), default=64, show_default=True, help="Of one."
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 1_000_000),
    default=1024,
    show_default=True,
    help="Connections that are open at a time; the one that is idle for longest makes room.",
)
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(0.001, 3600),
    default=10.0,
    show_default=True,
    help="Until a request is answered or given up.",
)
@click.option(
    "--follow-seconds",
    type=click.FloatRange(0.01, 3600),
    help="How often newer checkpoints are looked for (default: 0.25, in a store 1).",
)
@click.option(
    "--keep-versions",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="That can be rolled back to.",
)
@click.option(
    "--forms",
    type=click.Path(),
    metavar="FOLDER",
    help="Where serving forms are kept, on a local disk (default: folder `serving` of the run).",
)
@click.option(
    "--rows",
    type=click.Choice(["float32", "bf16", "int8"]),
    default="float32",
    show_default=True,
    help="How vectors are kept: float32 as they were trained; the others take less, and are refused"
    " where the model then ranks worse, see docs/serving.md.",
)
@click.option(
    "--memory",
    type=Bytes(),
    metavar="SIZE",
    help="Of vectors in memory, such as 2GB, shared by the sessions: those that are asked for most;"
    " the others are read from the disk of --forms (default: all are mapped).",
)
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    help="Labelled samples on which --rows is held against the rows as trained (default: data.eval"
    " of the run's job).",
)
@click.option("--force", is_flag=True, help="Take --rows unmeasured.")
@click.option(
    "--token-file",
    type=click.Path(),
    metavar="FILE",
    help=f"Holds the token that requests must bear (default: ${TOKEN_VARIABLE}, else none).",
)
@click.option(
    "--publish-token-file",
    type=click.Path(),
    metavar="FILE",
    help=f"Holds the token of a job at tcp://HOST:PORT (default: ${PUBLISH_VARIABLE}).",
)
@click.option(
    "--access-log", metavar="FILE", help="A line of JSON for each request; - for standard output."
)
@json_option
def command(**given: Any) -> None:
    """Answer requests for predictions until SIGINT or SIGTERM.

    RUN_OR_CHECKPOINT is a run directory, the URL where its checkpoints are, or tcp://HOST:PORT,
    where its job publishes them: newer ones are served as they come. Or it is one checkpoint.
    Predictions are those of `synchromesh predict`. docs/serving.md says what requests look like.
    """
    asked = _Asked(**given)
    options = _options(asked)
    _check_rows(asked)
    _serve(options, as_json=asked.as_json)


def _options(asked: _Asked) -> "ServeOptions":
    """Return how the model is served; refuse what doesn't fit together."""
    try:
        from serving.endpoint.answering import Limits
        from serving.running import ServeOptions
    except ImportError as error:
        raise Refused(f"{error.name} is missing: pip install 'synchromesh[serve]'") from error
    from serving.session import SessionOptions

    name = asked.name
    if not name or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in name):
        raise click.UsageError(f"--name may have letters, digits, '_', '.' and '-', got {name!r}")
    if asked.rows == "float32" and (asked.data or asked.force):
        raise click.UsageError("--data and --force are of --rows bf16 and int8")
    if asked.flight_port and asked.flight_port == asked.port:
        raise click.UsageError(f"--port and --flight-port are both {asked.port}")
    return ServeOptions(
        source=asked.source,
        session=SessionOptions(
            name=name,
            max_rows=asked.max_rows,
            max_batch=asked.max_batch,
            max_delay=asked.max_delay_ms / 1000,
            max_waiting=asked.max_waiting,
        ),
        host=asked.host,
        port=asked.port,
        flight_port=asked.flight_port,
        sessions=asked.sessions,
        token=read_token("--token-file", asked.token_file, TOKEN_VARIABLE),
        publish_token=read_token(
            "--publish-token-file", asked.publish_token_file, PUBLISH_VARIABLE
        ),
        forms=asked.forms,
        rows=asked.rows,
        memory_bytes=asked.memory,
        keep_versions=asked.keep_versions,
        follow_seconds=asked.follow_seconds,
        limits=Limits(
            body_bytes=asked.max_body_mib << 20,
            request_seconds=asked.timeout_seconds,
            outstanding=asked.max_waiting * max(asked.sessions, 1),
        ),
        connections=asked.max_connections,
        access_log=asked.access_log,
    )


def _serve(options: "ServeOptions", *, as_json: bool) -> None:
    """Open the model, and answer until a signal."""
    from embedding.kernels.compile_cache import when_compiling
    from serving.endpoint.server import run_loop
    from serving.errors import ServingError
    from serving.interpreter import keep_pauses_short
    from serving.running import Serving

    with (
        answering(ModelError, ServingError, failures=FAILURES),
        when_compiling(_tell_of_compiling),
    ):
        serving = Serving(options, FormProgress().tell)

    def ready() -> None:
        keep_pauses_short()
        _tell(serving, options.session.name, as_json=as_json)

    with answering(failures=(*FAILURES, ServingError)):
        try:
            run_loop(serving.run(ready))
        finally:
            serving.close()
    if serving.waits:
        sys.stdout.flush()
        os._exit(0)  # gRPC would wait for streams that nobody may ever end


class FormProgress:
    """Says on the standard error how far a serving form is, of one that takes its time.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._checkpoint = ""
        self._began = self._next = 0.0

    def tell(self, progress: "BaseProgress") -> None:
        """Say it, every five seconds; the first time after two."""
        now = self._now()
        if progress.checkpoint != self._checkpoint or progress.rows == 0:
            self._checkpoint, self._began = progress.checkpoint, now
            self._next = now + _FIRST_TOLD_SECONDS
        if now < self._next:
            return
        self._next = now + _TOLD_SECONDS
        click.echo(
            f"making the serving form of {progress.checkpoint}: {progress.rows:,} of"
            f" {progress.of:,} rows after {now - self._began:.0f} s; it is kept",
            err=True,
        )


def _tell_of_compiling() -> None:
    click.echo(
        "compiling what computes for this processor, which takes about half a minute; it is kept"
        " for the next start",
        err=True,
    )


def _tell(serving: "Serving", name: str, *, as_json: bool) -> None:
    """Say what is served, and where."""
    version, bulk = serving.model.version, serving.bulk
    if as_json:
        told = {"address": serving.address, "model": name, "step": version.step}
        print_json(told if bulk is None else told | {"flight": bulk.address})
        return
    where = serving.address if bulk is None else f"{serving.address} and {bulk.address}"
    click.echo(
        f"serving {version.checkpoint} (step {version.step}) as {name!r} at {where};"
        " end it with Ctrl-C"
    )


def _check_rows(asked: _Asked) -> None:
    """Refuse a way of keeping rows that ranks worse; tell people what was measured."""
    rows = asked.rows
    if rows == "float32" or asked.force:
        return
    from serving.errors import ServingError
    from serving.published import is_published
    from synchromesh.evaluation import BAD_INPUT
    from synchromesh.served_rows import MAX_AUC_LOSS, rows_loss

    if is_published(asked.source):
        raise Refused(
            f"what {rows} loses can't be measured for a job that publishes; --force serves it"
            " unmeasured"
        )
    with answering(*BAD_INPUT, ServingError):
        found = rows_loss(
            asked.source,
            rows=rows,
            forms=asked.forms,
            data=asked.data or None,
            when_making=FormProgress().tell,
        )
    told = (
        f"AUC {found.auc_kept:.5f} with rows as {rows}, {found.auc:.5f} as trained, on"
        f" {found.samples} samples"
    )
    if not found.loss <= MAX_AUC_LOSS:
        raise Refused(f"{told}: more than {MAX_AUC_LOSS} is lost; --force serves them all the same")
    click.echo(
        f"{told}; vectors take {found.vector_bytes_kept / 1e6:.1f} MB in place of"
        f" {found.vector_bytes / 1e6:.1f}",
        err=True,
    )
