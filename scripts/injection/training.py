"""One job that really runs, as a command of its own, to which faults are done while it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from injection.draw import Role
from injection.processes import below, reap, roles_now, until_gone

ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 0.1
# From the start of the command, or from a fault, to steps that are new. A node that vanishes is
# noticed after 64 s; then processes come up.
PROGRESS_SECONDS = 240.0
# For all processes to follow the driver. Ray's agents go on asking for a head that is dead.
SOON_SECONDS, GONE_SECONDS = 30.0, 100.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SAMPLES = ("samples", "samples_dropped", "samples_skipped")


class FaultFoundError(AssertionError):
    """The run did not do what it should."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a job was at a line of its metrics; `ended` are samples of any outcome."""

    step: int = 0
    ended: int = 0


def ray_settings(temporary: Path) -> dict[str, str]:
    """Return the environment for whatever starts Ray, with its folder of temporary files."""
    return {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Beside whatever else the machine does; Ray's processes would else come last.
        "RAY_worker_niceness": "0",
        "TMPDIR": str(temporary),
    }


class Training:
    """A job in its folder: its command, its log, its metrics.

    Args:
        folder: where the run directory and the log lie.
        job: the job file's content; `run.dir` is set here.
        samples: rows times epochs.
        temporary: folder of temporary files, of Ray's too.
        run: the run directory; by default a folder in `folder`.
        ray_address: of the cluster to join; None: the job starts Ray itself.
    """

    def __init__(
        self,
        folder: Path,
        job: dict[str, Any],
        *,
        samples: int,
        temporary: Path,
        run: Path | None = None,
        ray_address: str | None = None,
    ) -> None:
        self.run = run or folder / "run"
        self.log = folder / "driver.log"
        self.temporary = temporary
        self.samples = samples
        self.reached = Reached()
        self.lines: list[dict[str, Any]] = []
        self._job_file = folder / "job.yaml"
        self._job = {**job, "run": {**job["run"], "dir": str(self.run)}}
        self._ray_address = ray_address
        self._read = 0
        self._driver: subprocess.Popen[bytes] | None = None
        (folder / "temporary").symlink_to(temporary)
        self._job_file.write_text(yaml.safe_dump(self._job))

    @property
    def whole(self) -> dict[Role, int]:
        """How many processes of each role there have to be."""
        cluster = self._job["cluster"]
        return {"worker": cluster["workers"], "server": cluster["servers"], "coordinator": 1}

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        assert self._driver is not None, "it was started"
        return self._driver

    @property
    def is_over(self) -> bool:
        """Whether the command has ended well; raises FaultFoundError where it ended otherwise."""
        code = self.driver.poll()
        if code not in (None, 0):
            raise FaultFoundError(f"the job ended with exit code {code}: {self.last_words()}")
        return code == 0

    @property
    def part(self) -> float:
        """The part of the job's samples that have ended."""
        return self.reached.ended / self.samples

    def start(self) -> None:
        """Start the command, or start it again: it goes on where it was."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **ray_settings(self.temporary),
        }
        environment.pop("RAY_ADDRESS", None)
        if self._ray_address is not None:
            environment["RAY_ADDRESS"] = self._ray_address
        command = [sys.executable, "-m", "synchromesh", "train", str(self._job_file)]
        with open(self.log, "ab") as log:
            self._driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def until(
        self, met: Callable[[], bool], seconds: float, what: str, *, every: float = LOOK_SECONDS
    ) -> bool:
        """Wait until something is so, or the job has ended well; return whether it is so.

        Raises:
            FaultFoundError: it was not so in time, or the job has failed.
        """
        limit = time.monotonic() + seconds
        while True:
            self.look()
            over = self.is_over
            if met():
                return True
            if over:
                return False
            if time.monotonic() > limit:
                raise FaultFoundError(f"{what} was waited for {seconds:.0f} s: {self.last_words()}")
            time.sleep(every)

    def until_part(self, part: float) -> bool:
        """Wait until a part of the job's samples have ended; return whether the job still runs.

        It may take as long as it goes on.
        """
        while self.part < part:
            before = self.reached.ended
            if not self.until(
                lambda before=before: self.reached.ended > before,  # type: ignore[misc]
                PROGRESS_SECONDS,
                f"a sample after {before:,}",
            ):
                return False
        return not self.is_over

    def until_made_good(self, before: Reached) -> bool:
        """Wait until all processes are there and the job is further than before a fault."""
        return self.until(
            lambda: self.reached.ended > before.ended and roles_now() == self.whole,
            PROGRESS_SECONDS,
            f"a job that is whole again and beyond step {before.step}",
        )

    def until_over(self) -> None:
        """Wait until the command has ended well, and with it every process."""
        self.until_part(1.0)
        self.until(lambda: False, PROGRESS_SECONDS, "the end of the job")

    def until_gone(self, *, soon: bool = False) -> None:
        """Wait until no process of the job is left after its driver is gone.

        Args:
            soon: leave out those of Ray's that take longer, and belong to no job.
        """
        self.driver.wait(SOON_SECONDS)

        def left() -> list[psutil.Process]:
            reap(but=[])
            found = below(self._is_ours)
            return [each for each in found if not (soon and _is_agent(each))]

        found = until_gone(left, SOON_SECONDS if soon else GONE_SECONDS)
        if found:
            raise FaultFoundError(f"left behind: {'; '.join(found)}")

    def _is_ours(self, process: psutil.Process) -> bool:
        """A cluster's own processes outlive the job; what runs an actor of the job does not."""
        if self._ray_address is None:
            return True
        return any("ray::" in word and "Actor" in word for word in process.cmdline())

    def look(self) -> None:
        """Read the lines of metrics that are new, and let processes go that are over."""
        reap(but=[] if self._driver is None else [self._driver.pid])
        try:
            with open(self.run / "metrics.jsonl", "rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            values = json.loads(line)
            self.lines.append(values)
            ended = sum(values[name] for name in SAMPLES)
            self.reached = Reached(values["global_step"], ended)

    def stop(self) -> None:
        """End whatever is left of the run."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.send_signal(signal.SIGKILL)
            self._driver.wait()
        for process in below(self._is_ours):
            try:
                process.send_signal(signal.SIGCONT)
                process.kill()
            except psutil.NoSuchProcess:
                continue
        reap(but=[])

    def last_words(self) -> str:
        """Return the end of what the command has said."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-4:])


def _is_agent(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(AGENTS)
    except psutil.Error:
        return True
