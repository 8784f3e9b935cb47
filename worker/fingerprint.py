"""The numeric fingerprint: what must be equal for two processes to compute equal bits."""

import hashlib
import platform
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import threadpoolctl


def numeric_fingerprint() -> dict[str, Any]:
    """Return versions, CPU target and BLAS kernel of this process, and a digest of them."""
    pools = threadpoolctl.threadpool_info()
    blas = sorted(
        f"{p['internal_api']} {p['version']} {p.get('architecture')} threads={p['num_threads']}"
        for p in pools
        if p["user_api"] == "blas"
    )
    features = llvm.get_host_cpu_features().flatten()
    facts = {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "cpu": llvm.get_host_cpu_name(),
        "cpu_features": hashlib.sha256(features.encode()).hexdigest()[:12],
        "blas": ", ".join(blas),
    }
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]
    return {**facts, "digest": digest}
