"""A Ray cluster whose autoscaler is the real one; its nodes are processes of this machine.

Ray's provider for tests makes nodes of processes. `ray.cluster_utils.AutoscalingCluster`, which
would start it, needs a file that the wheel lacks, and stops every Ray of the machine; so the head
is started here, with ports of its own, and ended with its children.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
STOP_SECONDS = 20.0
# As the provider names it: with any other name every update dies in the monitor's log.
HEAD = "ray.head.default"
# That `ray start` gives a head whose nodes are made by the provider.
FAKE_HEAD_NODE_ID = "f" * 51 + "00000"


def node_type(most: int, *, cpus: int, role: str) -> dict[str, Any]:
    """Return a type of node that has one of a resource `role`, and is labelled so."""
    return {
        "resources": {"CPU": cpus, role: 1, "object_store_memory": 80 << 20},
        "labels": {"role": role},
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }


@dataclass
class AutoscalingRay:
    """Args:
    address: of the head, HOST:PORT.
    environment: for whoever joins it.
    folder: of its logs.
    """

    address: str
    environment: dict[str, str]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def join(self, namespace: str) -> None:
        """Connect this process; the head may listen long before its node is registered."""
        import ray

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ray.init(address=self.address, namespace=namespace, log_to_driver=False)
                return
            except (ConnectionError, RuntimeError):
                ray.shutdown()
                if time.monotonic() > deadline:
                    raise

    def log(self) -> str:
        """Return what the autoscaler said last, for a person."""
        found = sorted(self.folder.glob("session_latest/logs/monitor.*"))
        lines = [line for path in found for line in path.read_text().splitlines()]
        return "\n".join([line for line in lines if "legacy field" not in line][-60:])

    def nodes(self) -> dict[str, int]:
        """Return how many nodes live, by role; asks over a connection that is there."""
        import ray

        counts: dict[str, int] = {}
        for node in ray.nodes():
            if node["Alive"]:
                role = node["Labels"].get("role", "head")
                counts[role] = counts.get(role, 0) + 1
        return counts


@contextmanager
def autoscaling_ray(
    folder: Path, types: dict[str, dict[str, Any]], *, idle_seconds: float = 6.0
) -> Iterator[AutoscalingRay]:
    """Start a head that has no CPUs for workers, and end all of it.

    Args:
        folder: for its session; short, since sockets lie in it.
        types: of nodes, by name.
        idle_seconds: after which a node without work goes.
    """
    head_id = FAKE_HEAD_NODE_ID
    port = _free_port()
    host = _own_address()
    config = {
        "cluster_name": "autoscaling",
        "max_workers": sum(each["max_workers"] for each in types.values()),
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 100.0,
        "head_node_type": HEAD,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": head_id,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"{host}:{port}",
        },
        "available_node_types": {
            HEAD: {
                "resources": {"CPU": 1, "coordinator": 1},
                "node_config": {},
                "max_workers": 0,
            },
            **types,
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    joining = {"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    environment = {
        **os.environ,
        **joining,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        # On a machine that has other work to do everything takes longer.
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        f"--autoscaling-config={path}", f"--port={port}", f"--node-ip-address={host}",
        "--num-cpus=1", '--resources={"coordinator": 1}', "--include-dashboard=false",
        f"--temp-dir={folder}", f"--object-store-memory={80 << 20}", "--disable-usage-stats",
        "--dashboard-agent-listen-port=0", f"--ray-client-server-port={_free_port()}",
    ]  # fmt: skip
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(host, port, head, folder)
        yield AutoscalingRay(f"{host}:{port}", joining, folder, [head])
    finally:
        _end(head)


def _free_port() -> int:
    """Return a port below those that the system gives out: the head takes seconds to bind it.

    Those from 10002 to 19999 Ray keeps for its workers, and refuses them for anything else.
    """
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as found:
            try:
                found.bind(("", port))
                return port
            except OSError:
                continue


def _own_address() -> str:
    import ray

    address: str = ray.util.get_node_ip_address()
    return address


def _wait_for(host: str, port: int, head: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no head came up:\n{(folder / 'head.log').read_text()[-2000:]}")


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and every process that it started; nodes are children of its monitor."""
    import psutil

    try:
        ours = [head, *psutil.Process(head.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        ours = [head]
    head.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in ours[1:]:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except psutil.TimeoutExpired:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    try:
        head.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    with suppress(ProcessLookupError):  # who has lost its parent is in the head's session still
        os.killpg(head.pid, signal.SIGKILL)
