"""The numeric fingerprint: what must be equal for two processes to compute equal bits.

A part of it may change while a process lives: a library that a thread loads, or calls, can set the
processor to flush denormal numbers to zero or to round another way. That is a state of each
thread, which those that it starts inherit. So the threads that compute look at it with every batch
and record (`check_float_mode`, half a microsecond), not at the start alone.
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import threadpoolctl
from numba.core.registry import cpu_target

from runtime.processor import processor_maker

# Read when a thread asks, in its mode: float64, as one mode holds for every width.
_SMALL, _LARGE = 2.0**-600, 2.0**600
_ONE, _HALF_ABOVE, _HALF_BELOW = 1.0, 2.0**-53, 2.0**-54


class FloatModeError(RuntimeError):
    """A thread computes in another mode than a process starts in."""


def numeric_fingerprint(
    *libraries: str, more: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return versions, CPU targets, BLAS kernel and float mode of this thread, and a digest.

    Args:
        libraries: distributions whose versions count too; they need not be loaded yet.
        more: other facts that count, such as those of a GPU.
    """
    pools = threadpoolctl.threadpool_info()
    blas = sorted(
        f"{p['internal_api']} {p['version']} {p.get('architecture')} threads={p['num_threads']}"
        for p in pools
        if p["user_api"] == "blas"
    )
    # What Numba compiles for: the host, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say.
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    facts = {
        "machine": platform.machine(),
        "libc": _libc(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "pyarrow": pa.__version__,
        "cpu": cpu,
        "cpu_features": hashlib.sha256(features.encode()).hexdigest()[:12],
        "numpy_features": " ".join([*simd.get("baseline", ()), *simd.get("found", ())]),
        "blas": ", ".join(blas),
        "float_mode": float_mode(),
        **{name: version(name) for name in libraries},
        **more,
    }
    if "torch" in libraries:  # MKL chooses its kernels by it, and we what makes products
        facts["processor_maker"] = processor_maker()
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]
    return {**facts, "digest": digest}


def process_facts(
    node_id: str, *libraries: str, more: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return where this process runs and what its numbers depend on: `numeric_fingerprint`."""
    fingerprint = numeric_fingerprint(*libraries, more=more)
    return {"pid": os.getpid(), "node": node_id, "fingerprint": fingerprint}


def float_mode() -> str:
    """Return in words how this thread treats denormal numbers and rounds; mostly "usual"."""
    changed = []
    denormal = _SMALL * (_SMALL * 2.0**150)
    if denormal * _LARGE != _SMALL * 2.0**150:
        changed.append("denormal numbers flushed to zero")
    if _ONE + _HALF_ABOVE != _ONE or _ONE - _HALF_BELOW != _ONE:
        changed.append("not rounded to nearest")
    return ", ".join(changed) or "usual"


def check_float_mode() -> None:
    """Raise FloatModeError unless this thread computes as a process starts."""
    mode = float_mode()
    if mode != "usual":
        raise FloatModeError(
            f"the processor's float mode was changed in a thread that computes ({mode}), so its"
            " bits differ from those of another process. A library does so when it is loaded (built"
            " with -ffast-math) or called (torch.set_flush_denormal): leave that out, or allow it"
            " with training.mixed_cpus=true"
        )


def _libc() -> str:
    """Return name and version of the C library, whose exp and log compiled kernels call."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (AttributeError, ValueError, OSError):
        return " ".join(platform.libc_ver()).strip() or "unknown"
