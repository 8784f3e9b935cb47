"""The numeric fingerprint sees what changes bits: other code paths, other modes of a thread."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from runtime.fingerprint import FloatModeError, check_float_mode, float_mode, numeric_fingerprint

InFloatMode = Callable[[str], AbstractContextManager[None]]


def elsewhere(**environment: str) -> dict[str, Any]:
    """The fingerprint of another process."""
    code = "import json, runtime.fingerprint as f; print(json.dumps(f.numeric_fingerprint()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def changed(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def test_a_thread_that_flushes_denormals_has_another_fingerprint(
    in_float_mode: InFloatMode,
) -> None:
    usual = numeric_fingerprint()
    with in_float_mode("flushing"):
        assert np.float32(1e-30) * np.float32(1e-10) == 0  # bits do change
        flushing = numeric_fingerprint()

    assert usual["float_mode"] == "usual"
    assert flushing["float_mode"] == "denormal numbers flushed to zero"
    assert changed(usual, flushing) == {"float_mode", "digest"}
    assert numeric_fingerprint() == usual


def test_a_thread_that_rounds_another_way_is_found(in_float_mode: InFloatMode) -> None:
    with in_float_mode("upward"):
        assert float_mode() == "not rounded to nearest"

    assert float_mode() == "usual"


def test_a_mode_is_that_of_a_thread_and_of_those_that_it_starts(in_float_mode: InFloatMode) -> None:
    seen = []
    before = threading.Event()
    other = threading.Thread(target=lambda: (before.wait(60), seen.append(float_mode())))
    other.start()
    with in_float_mode("flushing"):
        heir = threading.Thread(target=lambda: seen.append(float_mode()))
        heir.start()
        heir.join()
        before.set()
        other.join()

    assert seen == ["denormal numbers flushed to zero", "usual"]


def test_a_changed_mode_is_refused_with_what_to_do(in_float_mode: InFloatMode) -> None:
    check_float_mode()
    with (
        in_float_mode("flushing"),
        pytest.raises(FloatModeError, match=r"denormal numbers .* training.mixed_cpus=true"),
    ):
        check_float_mode()


@pytest.mark.skipif(
    not np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found"),
    reason="NumPy dispatches to nothing on this machine",
)
def test_features_that_numpy_does_not_use_are_seen() -> None:
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]

    without = elsewhere(NPY_DISABLE_CPU_FEATURES=" ".join(found))

    assert changed(elsewhere(), without) == {"numpy_features", "digest"}


def test_the_version_of_a_library_that_a_model_needs_is_seen() -> None:
    plain, with_click = numeric_fingerprint(), numeric_fingerprint("click")

    assert with_click["click"] == version("click")
    assert {name for name in plain if plain[name] != with_click[name]} == {"digest"}


def test_a_gpu_is_seen() -> None:
    plain, with_gpu = numeric_fingerprint(), numeric_fingerprint(more={"gpu": "NVIDIA L4"})

    assert with_gpu["gpu"] == "NVIDIA L4"
    assert {name for name in plain if plain[name] != with_gpu[name]} == {"digest"}


def test_the_processor_that_numba_compiles_for_is_seen() -> None:
    generic = elsewhere(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")

    assert changed(elsewhere(), generic) == {"cpu", "cpu_features", "digest"}


def test_who_made_the_processor_is_seen_where_torch_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.fingerprint.version", lambda name: "1")
    found = []
    for maker in ("AuthenticAMD", "GenuineIntel"):
        monkeypatch.setattr("runtime.fingerprint.processor_maker", lambda maker=maker: maker)
        found.append((numeric_fingerprint()["digest"], numeric_fingerprint("torch")["digest"]))

    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
