"""The command `synchromesh` and the list of its commands; each is imported when it is called."""

import signal
from collections.abc import Sequence
from importlib import import_module

import click

import synchromesh
from synchromesh.commands.answers import Interrupted, Refused

# Command: (module, what it does).
COMMANDS = {
    "train": ("train", "Train a job."),
    "init": ("init", "Write a job file for a Parquet file."),
    "check": ("check", "Hold a job against its data, without starting it."),
    "evaluate": ("evaluate", "Score a checkpoint on labelled samples."),
    "predict": ("predict", "Write the probability of label 1 for every row of Parquet files."),
    "serve": ("serve", "Answer requests for predictions over HTTP."),
    "export": ("export", "Write tables and the dense part of a checkpoint for other software."),
    "inspect": ("inspect_tables", "Show the tables of a checkpoint, or what one of them holds."),
    "report": ("report", "Write a page that shows a run."),
    "control": ("control", "Look at a running job and change it."),
    "checkpoint": ("checkpoint", "List checkpoints, show or verify one."),
    "data": ("data", "Make data sets: public ones converted, or generated ones."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"synchromesh.commands.{COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them from the table above: importing all of them would take a second."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, epilog="Example: synchromesh train jobs/dlrm.yaml training.mode=sync")
@click.version_option(synchromesh.__version__, prog_name="synchromesh")
def synchromesh_command() -> None:
    """Train recommendation models with parameter servers on Ray.

    Exits 0 when it is done, 2 where it can't be done as it was asked for, 1 where it failed on the
    way, 130 where it was interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    # What is stopped from outside ends like what is interrupted: its processes end, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = synchromesh_command.main(
            args=None if arguments is None else list(arguments),
            prog_name="synchromesh",
            standalone_mode=False,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Refused.exit_code
    except click.UsageError as error:
        context = error.ctx
        help_of = f" (see {context.command_path} --help)" if context is not None else ""
        Refused(error.format_message().rstrip(".") + help_of).show()
        return Refused.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        Interrupted("interrupted").show()
        return Interrupted.exit_code
    return code if isinstance(code, int) else 0
