"""Nodes of an emulated network: namespaces of the kernel on one bridge, each behind a slow link.

It takes root, and `ip` and `tc` of iproute2. What runs in a namespace has its own network; files,
and so local sockets, are those of the machine.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

INTERFACE = "eth0"
_CLONE_NEWNET = 0x40000000
_BURST_BYTES = 1 << 18
_NET_ADMIN, _SYS_ADMIN = 1 << 12, 1 << 21  # capabilities; root lacks them in most containers


def are_allowed() -> bool:
    """Return whether this process may make nodes, and has the commands for it."""
    status = Path("/proc/self/status").read_text()
    (effective,) = (line for line in status.splitlines() if line.startswith("CapEff:"))
    needed = _NET_ADMIN | _SYS_ADMIN
    return int(effective.split()[1], 16) & needed == needed and None not in map(
        shutil.which, ("ip", "tc")
    )


class Nodes:
    """So many nodes with a link each; they are gone with the end of the block.

    Args:
        count: of nodes.
        mbit: what a link carries each way, in millions of bits a second.
    """

    def __init__(self, count: int, mbit: int) -> None:
        prefix = f"sm{os.getpid() % 100_000}"
        self._bridge = f"{prefix}b"
        self.names = [f"{prefix}n{number}" for number in range(count)]
        self.hosts = [f"10.201.7.{number + 1}" for number in range(count)]
        self._links = [f"{prefix}l{number}" for number in range(count)]
        self._mbit = mbit

    def __enter__(self) -> "Nodes":
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("link", "set", self._bridge, "up")
            for name, link, host in zip(self.names, self._links, self.hosts, strict=True):
                self._add(name, link, host)
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

    def close(self) -> None:
        """Take all of it away, as far as it is there."""
        for name in self.names:
            _run(["ip", "netns", "delete", name], must=False)
        for link in [*self._links, self._bridge]:
            _run(["ip", "link", "delete", link], must=False)

    def bytes_of(self, node: int) -> tuple[int, int]:
        """Return what a node has received and sent so far, headers of packets included."""
        figures = Path("/sys/class/net") / self._links[node] / "statistics"
        # What the bridge's end sends, the node receives.
        return int((figures / "tx_bytes").read_text()), int((figures / "rx_bytes").read_text())

    def _add(self, name: str, link: str, host: str) -> None:
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", INTERFACE, "netns", name)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{host}/24", "dev", INTERFACE)
        for device in ("lo", INTERFACE):
            _ip("-n", name, "link", "set", device, "up")
        limit = ["tbf", "rate", f"{self._mbit}mbit", "burst", str(_BURST_BYTES), "latency", "50ms"]
        _run(["tc", "qdisc", "add", "dev", link, "root", *limit])
        _run(["tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "root", *limit])


def enter(name: str) -> None:
    """Have this thread, and those that it starts, use a node's network; raises OSError."""
    with open(f"/run/netns/{name}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"can't enter the network of node {name}: {os.strerror(code)}")


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str], *, must: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if must and done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()} (it takes root)")
