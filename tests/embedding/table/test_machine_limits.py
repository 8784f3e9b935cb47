import subprocess
import sys
from pathlib import Path

import pytest

from embedding.table import machine_limits
from embedding.table.machine_limits import (
    Limit,
    address_limit,
    cgroup_memory_bytes,
    memory_limit,
    physical_memory_bytes,
)

UNLIMITED_V1 = 9223372036854771712


def written(folder: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        # Version 2: any group above may be the one with the limit.
        ("0::/a/b", {"a/memory.max": 3 << 30, "a/b/memory.max": "max"}, 3 << 30),
        ("0::/a/b", {"a/memory.max": 3 << 30, "a/b/memory.max": 2 << 30}, 2 << 30),
        ("0::/", {"memory.max": 1 << 30}, 1 << 30),
        # A container that sees its group's name on the machine, and its folder as the root.
        ("0::/docker/0123", {"memory.max": 1 << 30}, 1 << 30),
        ("0::/../../other", {"memory.max": 1 << 30}, 1 << 30),
        ("0::/a", {"a/memory.max": "max"}, None),
        # Version 1, beside version 2.
        (
            "5:cpu,cpuacct:/x\n4:memory:/j\n0::/",
            {
                "memory/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/j/memory.limit_in_bytes": 5 << 30,
            },
            5 << 30,
        ),
        ("4:cpu:/j", {"memory/j/memory.limit_in_bytes": 5 << 30}, None),
    ],
)
def test_the_lowest_limit_of_the_control_groups_is_found(tmp_path, own, files, found):
    groups = written(tmp_path, {"groups": own})
    mounted = written(tmp_path / "mounted", files)

    assert cgroup_memory_bytes(groups / "groups", mounted) == found


def test_a_machine_without_control_groups_has_no_limit_by_them(tmp_path):
    assert cgroup_memory_bytes(tmp_path / "none", tmp_path) is None


def test_memory_is_what_the_container_has_or_the_machine(monkeypatch):
    monkeypatch.setattr(machine_limits, "physical_memory_bytes", lambda: 64 << 30)

    for container, num_bytes, cause in (
        (None, 64 << 30, "the machine's memory (64.0 GiB)"),
        (UNLIMITED_V1, 64 << 30, "the machine's memory (64.0 GiB)"),
        (8 << 30, 8 << 30, "the memory limit of this container (cgroup) (8.0 GiB)"),
    ):
        monkeypatch.setattr(machine_limits, "cgroup_memory_bytes", lambda found=container: found)
        limit = memory_limit()
        assert (limit.num_bytes, str(limit)) == (num_bytes, cause)


def test_the_memory_of_this_machine_is_plausible():
    assert 1 << 28 < memory_limit().num_bytes <= physical_memory_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0.0 MiB"), (5 << 19, "2.5 MiB"), (3 << 29, "1.5 GiB"), (81 << 40, "81.0 TiB")],
)
def test_a_limit_is_shown_in_a_unit_that_fits(num_bytes, said):
    assert str(Limit(num_bytes, "a thing", "")) == f"a thing ({said})"


@pytest.mark.skipif(sys.platform != "linux", reason="the address space of Linux")
def test_without_limits_the_address_space_is_that_of_a_process():
    limit = address_limit()

    assert 1 << 37 < limit.num_bytes < 1 << 48
    assert limit.cause == "the address space of a process"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize(
    ("which", "cause"), [("AS", "virtual memory (ulimit -v)"), ("DATA", "data (ulimit -d)")]
)
def test_of_a_limit_three_quarters_of_what_is_left_can_be_reserved(which, cause):
    script = f"""
import mmap, resource
from embedding.table.machine_limits import address_limit
pages = open("/proc/self/statm").read().split()
used = int(pages[{0 if which == "AS" else 5}]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_{which}, (used + (1 << 30), resource.RLIM_INFINITY))
limit = address_limit()
assert 0.7 * 2**30 < limit.num_bytes <= 0.75 * 2**30, limit
assert {cause!r} in limit.cause, limit
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_strict_overcommit_counts_as_a_limit(monkeypatch):
    said = {
        "/proc/self/statm": "1 1 1 1 0 1 0",
        "/proc/sys/vm/overcommit_memory": "2\n",
        "/proc/meminfo": "MemTotal: 9 kB\nCommitLimit:  1048576 kB\nCommitted_AS: 524288 kB\n",
    }
    monkeypatch.setattr(machine_limits, "_read", lambda path: said[str(path)])

    limit = address_limit()

    assert limit.num_bytes == 3 << 27  # three quarters of 512 MiB
    assert "vm.overcommit_memory=2" in limit.cause


def test_what_can_not_be_had_is_not_counted_on(monkeypatch):
    """There are limits that are written nowhere; they show when address space is asked for."""

    class Mapping:
        PAGESIZE = 4096

        @staticmethod
        def mmap(_fd, length, **_kwargs):
            if length > 10 << 30:
                raise OSError(12, "Cannot allocate memory")
            return open("/dev/null", "rb")  # something to close

    monkeypatch.setattr(machine_limits, "mmap", Mapping)

    assert 7 << 30 < address_limit().num_bytes <= 10 << 30
