"""What the processor of this machine has for bfloat16."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# As Linux calls them, of x86-64 and of AArch64.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def bfloat16_instructions() -> tuple[str, ...] | None:
    """Return the names of the instructions that compute in bfloat16; None where nobody says."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(each for each in _INSTRUCTIONS if each in flags.split())
    return None
