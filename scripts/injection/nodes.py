"""A Ray cluster of several nodes on this machine, and what befalls nodes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from injection.processes import below, role_of
from injection.training import ray_settings

HEAD_CPUS, NODE_CPUS, NODES = 0, 1, 3
TRIES = 4
SHORT_NOTICE_SECONDS, LONG_NOTICE_SECONDS = 3, 60


class Nodes:
    """A head without places for actors, and nodes of one CPU each.

    Args:
        temporary: where Ray keeps its files.
    """

    def __init__(self, temporary: Path) -> None:
        os.environ.update(ray_settings(temporary))
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": HEAD_CPUS,
                "include_dashboard": False,
                "object_store_memory": 128 << 20,
                "temp_dir": str(temporary / "ray"),
            },
        )
        self.fill_up()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def fill_up(self) -> None:
        """Bring up nodes for those that were removed."""
        while len(self._cluster.worker_nodes) < NODES:
            self._add_node()

    def _add_node(self) -> None:
        """Bring up a node. Ray gives it 30 s, which may be too little on a machine that is busy."""
        for left in reversed(range(TRIES)):
            try:
                self._cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=128 << 20)
                return
            except Exception:  # Ray raises no other
                if not left:
                    raise

    def with_actors(self) -> list[tuple[Any, list[psutil.Process]]]:
        """Return the nodes on which the job has actors, each with its processes."""
        found = []
        for node in sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id)):
            mine = self.processes(node)
            if any(_runs_actor(process) for process in mine):
                found.append((node, mine))
        return found

    def processes(self, node: Any) -> list[psutil.Process]:
        """Return a node's processes: its raylet, and all below that."""
        raylet = self.raylet(node)
        return [raylet, *raylet.children(recursive=True)]

    def raylet(self, node: Any) -> psutil.Process:
        (found,) = node.all_processes["raylet"]
        return psutil.Process(found.process.pid)

    def remove(self, node: Any, *, with_goodbye: bool) -> None:
        """End a node: with a goodbye Ray knows at once, without one after 14 s."""
        self._cluster.remove_node(node, allow_graceful=with_goodbye)

    def has_actors(self, node: Any) -> bool:
        """Whether anything of the job runs on a node."""
        return any(_runs_actor(process) for process in self.processes(node))

    def drain(self, node: Any, seconds: int) -> None:
        """Announce that a node will be taken away in so many seconds."""
        subprocess.run(
            [
                str(Path(sys.executable).with_name("ray")),
                "drain-node",
                f"--address={self.address}",
                f"--node-id={node.node_id}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=taken away on purpose",
                f"--deadline-remaining-seconds={seconds}",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def close(self) -> None:
        self._cluster.shutdown()
        for process in below():
            if any("raylet" in word or "gcs_server" in word for word in process.cmdline()[:1]):
                process.kill()


def _runs_actor(process: psutil.Process) -> bool:
    try:
        return role_of(process) is not None
    except psutil.Error:
        return False
