"""What Linux says of this machine's processor."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_info(*names: str) -> str | None:
    """Return the value of the first line that has one of these names; None where there is none."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return None


def processor_maker() -> str:
    """Return who made the processor, `GenuineIntel` say; `unknown` where nobody tells."""
    return cpu_info("vendor_id", "CPU implementer") or "unknown"
