"""What a process can have of memory and of address space, and what limits it: for messages."""

import mmap
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

# Python's mmap module names this flag from 3.13 on.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40
NO_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE

_ADDRESS_BITS = 48  # of a pointer, at most; most processors give a process 47
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Limit:
    """How many bytes can be had, what limits them, and what to do where more are needed."""

    num_bytes: int
    cause: str
    remedy: str

    def __str__(self) -> str:
        units = {"TiB": 40, "GiB": 30, "MiB": 20}
        unit = next((unit for unit, bits in units.items() if self.num_bytes >> bits), "MiB")
        return f"{self.cause} ({self.num_bytes / (1 << units[unit]):.1f} {unit})"


def physical_memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit() -> Limit:
    """Return how much memory this process can fill: the machine's, or what its container has."""
    machine = Limit(
        physical_memory_bytes(), "the machine's memory", "Use servers on more machines, or evict"
    )
    container = cgroup_memory_bytes()
    if container is None or container >= machine.num_bytes:
        return machine
    return Limit(
        container,
        "the memory limit of this container (cgroup)",
        "Raise that limit, use servers on more machines, or evict",
    )


def cgroup_memory_bytes(
    own: Path = _PROC / "self" / "cgroup", mounted: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the lowest memory limit of the control groups (1 and 2) that this process is in.

    Args:
        own: the file that names the groups.
        mounted: where their folders are. A container may see its own group as the root there.

    Returns:
        bytes, or None where there is no limit.
    """
    found: list[int] = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            text = _read(root.joinpath(*parts[:depth]) / name).strip()
            if text.isdigit():  # not "max"
                found.append(int(text))
    return min(found, default=None)


def address_limit() -> Limit:
    """Return how much address space can be reserved now; where a limit is set, 3/4 of what is left.

    The rest is for buffers, threads and compiled code. That much is tried, and less where it can't
    be had, as there are limits that are not written anywhere.
    """
    limit = min(_address_limits(), key=lambda limit: limit.num_bytes)
    num_bytes = limit.num_bytes
    while num_bytes > mmap.PAGESIZE:
        try:
            mmap.mmap(-1, num_bytes, flags=NO_RESERVE).close()
            break
        except (OSError, OverflowError):
            num_bytes = num_bytes // 4 * 3
    return Limit(num_bytes, limit.cause, limit.remedy)


def _address_limits() -> list[Limit]:
    found = [
        Limit(
            1 << _ADDRESS_BITS,
            "the address space of a process",
            "Use more servers, on one machine too: each has an address space of its own",
        )
    ]
    pages = [int(number) for number in _read(_PROC / "self" / "statm").split()] or [0] * 7
    raise_it = "Raise it, use more servers, or evict"
    for name, which, used in (
        ("the limit on virtual memory (ulimit -v)", resource.RLIMIT_AS, pages[0]),
        ("the limit on data (ulimit -d)", resource.RLIMIT_DATA, pages[5]),
    ):
        soft, _ = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            left = max(soft - used * mmap.PAGESIZE, 0)
            found.append(Limit(left // 4 * 3, f"what {name} leaves", raise_it))
    if _read(_PROC / "sys" / "vm" / "overcommit_memory").strip() == "2":
        fields = dict(line.split(":") for line in _read(_PROC / "meminfo").splitlines())
        limit, used = (int(fields[name].split()[0]) for name in ("CommitLimit", "Committed_AS"))
        found.append(
            Limit(
                max(limit - used, 0) * 1024 // 4 * 3,
                "what strict overcommit (vm.overcommit_memory=2) leaves",
                "Allow overcommit, use servers on more machines, or evict",
            )
        )
    return found


def _read(path: Path) -> str:
    """Return what a file of the kernel's says; "" where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
