"""`synchromesh control`: look at a running job and change it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from embedding.kernels.mixing import NUM_BUCKETS
from scheduler.coordinator.events import (
    EndOfTrainingWanted,
    FinishWanted,
    PauseWanted,
    ServersWanted,
    ShiftWanted,
    Wanted,
    WorkersWanted,
)
from scheduler.coordinator.modes.rules import SHIFTABLE
from scheduler.errors import ControlError, NotRunningError
from scheduler.run.control_file import find_job, use_its_authentication
from scheduler.scaling.decisions import described
from synchromesh.commands.answers import answering, json_option, print_json

RATE_SECONDS = 1.0


NUMBERS = {"ignore_unknown_options": True}  # -1 is a wrong number, and no option


class _CountParam(click.ParamType):
    """A number of workers or servers, or `auto`, which is None."""

    name = "N|auto"

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        count = int(value) if str(value).isdecimal() else 0
        if count < 1 or (self._most is not None and count > self._most):
            to = "" if self._most is None else f" to {self._most}"
            self.fail(f"{value!r} is neither a number from 1{to} nor auto", param, ctx)
        return count


@click.group(epilog="Example: synchromesh control runs/dlrm mode gba")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN_DIR")
@click.pass_context
def command(context: click.Context, run: Path) -> None:
    """Look at a running job and change it.

    Finds the job by RUN_DIR/control.json and connects to its Ray cluster. Exits 2 where no job runs
    there (it then says what the run directory tells), 1 where the job can't do it.
    """
    context.obj = run


@contextmanager
def _job_in(run: Path) -> Iterator[Any]:
    with answering(NotRunningError, failures=(ControlError,)):
        facts = find_job(run)
        use_its_authentication(facts)
        from scheduler.driver.remote import running_job

        with running_job(run, facts) as job:
            yield job


@command.command("status")
@json_option
@click.pass_obj
def _status(run: Path, as_json: bool) -> None:
    """Show what the job does now."""
    with _job_in(run) as job:
        _show_status(job, as_json)


@command.command("mode")
@click.argument("mode", type=click.Choice([*SHIFTABLE, "auto"]))
@json_option
@click.pass_obj
def _mode(run: Path, mode: Any, as_json: bool) -> None:
    """Go on in another mode; auto lets the policy choose from now on."""
    _order(run, ShiftWanted(mode), as_json)


@command.command("pause")
@json_option
@click.pass_obj
def _pause(run: Path, as_json: bool) -> None:
    """Give out no batch until `resume`."""
    _order(run, PauseWanted(True), as_json)


@command.command("resume")
@json_option
@click.pass_obj
def _resume(run: Path, as_json: bool) -> None:
    """Go on after `pause`."""
    _order(run, PauseWanted(False), as_json)


@command.command("workers", context_settings=NUMBERS)
@click.argument("count", type=_CountParam(), metavar="N|auto")
@json_option
@click.pass_obj
def _workers(run: Path, count: int | None, as_json: bool) -> None:
    """Train with N workers from now on; auto lets the policy of scaling choose."""
    _order(run, WorkersWanted(count), as_json)


@command.command("servers", context_settings=NUMBERS)
@click.argument("count", type=_CountParam(NUM_BUCKETS), metavar="N|auto")
@json_option
@click.pass_obj
def _servers(run: Path, count: int | None, as_json: bool) -> None:
    """Share the model out to N servers; auto lets the policy of scaling choose.

    Buckets move while the job trains, then it pauses for a moment. `status` says how far that is.
    """
    _order(run, ServersWanted(count), as_json)


@command.command("stop")
@json_option
@click.pass_obj
def _stop(run: Path, as_json: bool) -> None:
    """End training early; the final checkpoint and evaluation follow.

    A job on a stream goes on from there where it is started again with run.resume=auto.
    """
    _order(run, EndOfTrainingWanted(), as_json)


@command.command("finish")
@json_option
@click.pass_obj
def _finish(run: Path, as_json: bool) -> None:
    """Train what has arrived of the stream by now, then end as usual, for good."""
    _order(run, FinishWanted(), as_json)


@command.command("checkpoint")
@json_option
@click.pass_obj
def _checkpoint(run: Path, as_json: bool) -> None:
    """Write a full checkpoint now, and print its path."""
    with _job_in(run) as job:
        result = job.checkpoint()
        if result.error is not None:
            raise ControlError(result.error)
    if as_json:
        print_json({"checkpoint": result.path})
    else:
        click.echo(result.path)


def _order(run: Path, wanted: Wanted, as_json: bool) -> None:
    with _job_in(run) as job:
        job.order(wanted)
        status = job.status()
    if as_json:
        print_json(
            {
                "mode": status.mode,
                "automatic": status.automatic,
                "paused": status.paused,
                "workers_wanted": status.num_workers,
                "workers_automatic": status.workers_automatic,
                **_of_servers(status),
                "step": status.step,
            }
        )
        return
    automatic = " (auto)" if status.automatic else ""
    paused = ", paused" if status.paused else ""
    scaled = " (auto)" if status.workers_automatic else ""
    servers = _of_servers(status)
    click.echo(
        f"mode {status.mode}{automatic}{paused}, workers wanted: {status.num_workers}{scaled},"
        f" servers: {servers['servers']} ({servers['servers_wanted']} wanted), step {status.step}"
    )


def _of_servers(status: Any) -> dict[str, Any]:
    """Return how many servers there are, are wanted, and what is done to that end."""
    view = status.servers_view
    facts = {
        "servers": status.num_servers,
        "servers_wanted": status.num_servers if view is None else view.wanted,
        "servers_automatic": view is not None and view.automatic,
    }
    return facts | ({"servers_doing": view.doing} if view is not None and view.doing else {})


def _show_status(job: Any, as_json: bool) -> None:
    before = job.status()
    time.sleep(RATE_SECONDS)
    status = job.status()
    seconds = status.train_seconds - before.train_seconds
    rate = (status.samples.applied - before.samples.applied) / seconds if seconds else 0.0
    facts = {
        "mode": status.mode,
        "automatic": status.automatic,
        "paused": status.paused,
        "global_step": status.applied_step,
        "samples": status.samples.applied,
        "samples_dropped": status.samples.dropped,
        "samples_skipped": status.samples.skipped,
        "samples_per_second": round(rate, 1),
        "train_seconds": round(status.train_seconds, 3),
        "evaluating": status.evaluating,
        "shifts": status.told.shifts,
        "workers_wanted": status.num_workers,
        "standbys": len(status.standbys),
        "workers_automatic": status.workers_automatic,
        **_of_servers(status),
    }
    view = status.scaling
    if view is not None:
        if status.workers_automatic:  # else it is of the time when it was
            facts["scaling"] = view.why
        for name, decision in (("worker", view.last), ("server", view.last_of_servers)):
            if decision is not None:
                facts[f"last_{name}_scaling"] = described(decision)
    workers = {
        number: {
            "lost": worker.lost,
            "batches": worker.batches,
            "seconds_per_batch": worker.seconds / worker.batches if worker.batches else None,
        }
        for number, worker in sorted(status.workers.items())
    }
    if as_json:
        print_json({**facts, "workers": workers})
        return
    console = Console(highlight=False)
    for name, value in facts.items():
        shown = str(value) if isinstance(value, str | bool) else f"{value:,}"
        console.print(f"{name:<20} {shown}")
    table = Table("worker", "batches", "ms a batch", box=None)
    for number, worker in workers.items():
        spent = worker["seconds_per_batch"]
        if not worker["lost"]:
            row = f"{worker['batches']:,}", f"{1000 * spent:,.0f}" if spent else "-"
            table.add_row(str(number), *row)
    if table.row_count:
        console.print(table)
