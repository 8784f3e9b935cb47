"""Commands in this process: their imports, over a second of CPU, are done already."""

import os
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from synchromesh.commands.main import main as synchromesh


def run_here(
    *arguments: object,
    cwd: Path | None = None,
    main: Callable[[list[str]], int] = synchromesh,
    **environment: str,
) -> CompletedProcess[str]:
    """Run `synchromesh`, or another program's main function; return what a process would."""
    command = [str(argument) for argument in arguments]
    out, err = (TextIOWrapper(BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.dict(os.environ, environment),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main(command)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return CompletedProcess(command, code, *printed)
