"""Look at a running job and change it: python scripts/control.py RUN_DIR COMMAND

    status          what it does now
    mode MODE       go on in sync, gba or async; auto lets the policy choose from now on
    pause, resume   give out no batch for a while
    workers N       train with so many workers from now on
    checkpoint      write a full checkpoint now, and print its path
    stop            end training early; the final checkpoint and evaluation follow

Finds the job by RUN_DIR/control.json and connects to its Ray cluster. Exits 2 where no job runs
there (it then says what the run directory tells) or the command is wrong, 1 where the job can't do
it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ps.strict_json import json_text
from scheduler.control_file import find_job, use_its_authentication
from scheduler.errors import ControlError, NotRunningError
from scheduler.events import (
    EndOfTrainingWanted,
    PauseWanted,
    ShiftWanted,
    Wanted,
    WorkersWanted,
)
from scheduler.modes import SHIFTABLE

RATE_SECONDS = 1.0


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        facts = find_job(arguments.run)
        use_its_authentication(facts)
        from scheduler.controlling import running_job

        with running_job(arguments.run, facts) as job:
            return int(arguments.act(job, arguments))
    except ControlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, NotRunningError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Look at a running job and change it.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, act: Callable[[Any, Any], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        command.set_defaults(act=act)
        return command

    status = add("status", _show_status, "show what the job does now")
    status.add_argument("--json", action="store_true", help="as one JSON line")
    mode = add("mode", _order(lambda a: ShiftWanted(a.mode)), "go on in another mode")
    mode.add_argument("mode", choices=[*SHIFTABLE, "auto"])
    add("pause", _order(lambda _: PauseWanted(True)), "give out no batch until `resume`")
    add("resume", _order(lambda _: PauseWanted(False)), "go on after `pause`")
    workers = add("workers", _order(lambda a: WorkersWanted(a.count)), "have so many workers")
    workers.add_argument("count", type=_positive, metavar="N")
    add("checkpoint", _checkpoint, "write a full checkpoint now")
    add("stop", _order(lambda _: EndOfTrainingWanted()), "end training early")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _order(wanted_of: Callable[[Any], Wanted]) -> Callable[[Any, Any], int]:
    def act(job: Any, arguments: Any) -> int:
        job.order(wanted_of(arguments))
        status = job.status()
        automatic = " (auto)" if status.automatic else ""
        paused = ", paused" if status.paused else ""
        print(
            f"mode {status.mode}{automatic}{paused}, workers wanted: {status.num_workers},"
            f" step {status.step}"
        )
        return 0

    return act


def _checkpoint(job: Any, arguments: Any) -> int:
    result = job.checkpoint()
    if result.error is not None:
        raise ControlError(result.error)
    print(result.path)
    return 0


def _show_status(job: Any, arguments: Any) -> int:
    before = job.status()
    time.sleep(RATE_SECONDS)
    status = job.status()
    seconds = status.train_seconds - before.train_seconds
    rate = (status.samples["applied"] - before.samples["applied"]) / seconds if seconds else 0.0
    facts = {
        "mode": status.mode,
        "automatic": status.automatic,
        "paused": status.paused,
        "global_step": status.applied_step,
        "samples": status.samples["applied"],
        "samples_dropped": status.samples["dropped"],
        "samples_skipped": status.samples["skipped"],
        "samples_per_second": round(rate, 1),
        "train_seconds": round(status.train_seconds, 3),
        "evaluating": status.evaluating,
        "shifts": status.told.shifts,
        "workers_wanted": status.num_workers,
    }
    workers = {
        number: {
            "lost": worker["lost"],
            "batches": worker["batches"],
            "seconds_per_batch": worker["seconds"] / worker["batches"]
            if worker["batches"]
            else None,
        }
        for number, worker in sorted(status.workers.items())
    }
    if arguments.json:
        print(json_text({**facts, "workers": workers}))
        return 0
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
