"""What the processor of this machine has for bfloat16."""

from runtime.processor import cpu_info

# As Linux calls them, of x86-64 and of AArch64.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def bfloat16_instructions() -> tuple[str, ...] | None:
    """Return the names of the instructions that compute in bfloat16; None where nobody says."""
    flags = cpu_info("flags", "Features")
    if flags is None:
        return None
    return tuple(each for each in _INSTRUCTIONS if each in flags.split())
