"""A Ray cluster on the nodes of an emulated network, and commands that run on one of them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bench.nodes import Nodes

_PORT = 6379
_START_SECONDS = 180.0
_END_SECONDS = 5.0
_OBJECT_STORE_BYTES = 100_000_000


class RayOnNodes:
    """Ray on every node, the head on the first; all processes there end with the block.

    Args:
        nodes: of a network that is there.
        cpus: that each node says it has.
    """

    def __init__(self, nodes: Nodes, *, cpus: int) -> None:
        self._nodes = nodes
        self._cpus = cpus
        self._head = f"{nodes.hosts[0]}:{_PORT}"
        self._directory = tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True)
        self._environment = dict(
            os.environ,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_worker_niceness="0",  # else jobs hardly run where other work fills the cores
        )

    def __enter__(self) -> "RayOnNodes":
        try:
            for number, host in enumerate(self._nodes.hosts):
                self._start(number, host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, command: Sequence[str], *, seconds: float) -> str:
        """Run a command on the first node, within the cluster; return what it prints.

        Raises:
            RuntimeError: it failed, or took longer.
        """
        environment = dict(self._environment, RAY_ADDRESS=self._head)
        return self._on(0, command, environment, seconds)

    def close(self) -> None:
        """End every process on the nodes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in (each for name in self._nodes.names for each in _processes_on(name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            deadline = time.monotonic() + _END_SECONDS
            while any(map(_processes_on, self._nodes.names)) and time.monotonic() < deadline:
                time.sleep(0.1)
        self._directory.cleanup()

    def _start(self, number: int, host: str) -> None:
        role = ["--address", self._head]
        if number == 0:
            role = ["--head", "--port", str(_PORT), "--temp-dir", self._directory.name]
            role.append("--include-dashboard=false")
        sizes = ["--num-cpus", str(self._cpus), "--object-store-memory", str(_OBJECT_STORE_BYTES)]
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", *role, "--node-ip-address", host, *sizes, "--disable-usage-stats"]
        self._on(number, command, self._environment, _START_SECONDS)

    def _on(
        self, number: int, command: Sequence[str], environment: dict[str, str], seconds: float
    ) -> str:
        # A file, as what is started in the background keeps a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    ["ip", "netns", "exec", self._nodes.names[number], *command],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{command[0]} took more than {seconds:.0f} s") from None
            output.seek(0)
            text = output.read()
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{text[-2000:]}")
        return text


def _processes_on(name: str) -> list[int]:
    listed = subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    )
    return [int(process) for process in listed.stdout.split()]
