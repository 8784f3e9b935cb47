"""A job that runs as a process of its own, as `synchromesh train` starts it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 600.0
END_SECONDS = 60.0


class JobProcess:
    """A job that was started, see `started`.

    Args:
        folder: of the job's file and of what the process has said.
        run: its run directory.
        most_seconds: that it may take.
    """

    def __init__(self, folder: Path, job: dict[str, Any], *, most_seconds: float) -> None:
        self.run = Path(job["run"]["dir"])
        self._log = folder / "log"
        self._ends = time.monotonic() + most_seconds
        self._most_seconds = most_seconds
        file = folder / "job.yaml"
        file.write_text(json.dumps(job))
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                _synchromesh("train", str(file)),
                cwd=folder,
                env=_environment(),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def runs(self) -> bool:
        """Whether it has not ended.

        Raises:
            RuntimeError: it takes too long.
        """
        if self.process.poll() is not None:
            return False
        if time.monotonic() > self._ends:
            raise RuntimeError(f"it takes longer than {self._most_seconds:.0f} s: {self.said()}")
        return True

    def said(self) -> str:
        """Return the end of what it has said."""
        return self._log.read_text()[-2000:]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl so far."""
        try:
            text = (self.run / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]

    def control(self, *command: str) -> None:
        """Have `synchromesh control` tell it something.

        Raises:
            RuntimeError: it could not.
        """
        told = subprocess.run(
            _synchromesh("control", str(self.run), *command),
            env=_environment(),
            capture_output=True,
            text=True,
        )
        if told.returncode:
            raise RuntimeError(f"control {' '.join(command)}: {told.stderr}")


@contextmanager
def started(
    folder: Path, job: dict[str, Any], *, most_seconds: float = MOST_SECONDS
) -> Iterator[JobProcess]:
    """Start a job, as a job file has it; end it with the `with`."""
    found = JobProcess(folder, job, most_seconds=most_seconds)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.terminate()
            try:
                found.process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                found.process.kill()


def _synchromesh(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "synchromesh", *arguments]


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    return environment
