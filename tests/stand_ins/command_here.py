"""The command in this process: its imports, over a second of CPU, are done already."""

from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

from synchromesh.commands.main import main


def run_here(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run `synchromesh` with these arguments; return what it printed and its exit code."""
    command = [str(argument) for argument in arguments]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd or Path.cwd()):
        code = main(command)
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())
