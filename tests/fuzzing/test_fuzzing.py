"""Damaged frames, checkpoints and job files: an error of ours or a right result, for each."""

import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from fuzzing import processes
from fuzzing import run as loop
from fuzzing.checkpoints import write_small_checkpoints
from fuzzing.kinds import SHARES, target_of
from fuzzing.processes import run_apart
from fuzzing.run import Target, run
from ps.checkpoint import manifest
from ps.checkpoint.sealed_json import SEAL

A_FEW = {
    "data-frames": 600,
    "control-frames": 500,
    "handshakes": 1000,
    "checkpoint-damage": 40,
    "checkpoint-manifests": 150,
    "checkpoint-forgeries": 30,
    "checkpoint-stores": 60,
    "job-files": 15,
    "job-states": 300,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest of a chain of checkpoints, of which copies are damaged."""
    return write_small_checkpoints(tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("kind", SHARES)
def test_damaged_input_is_refused_or_read_right(kind: str, written: Path, tmp_path: Path) -> None:
    outcome = run(target_of(kind, tmp_path, written), seed=0, inputs=A_FEW[kind])

    assert not outcome.faults
    assert outcome.inputs == A_FEW[kind]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SHARES)
def test_a_million_damaged_inputs_are_refused_or_read_right(kind: str, tmp_path: Path) -> None:
    outcome = run_apart(kind, seed=1, inputs=1000 * SHARES[kind], work=tmp_path)

    assert not outcome.faults


# The fuzzer itself: what is wrong is seen ---------------------------------------------------------


def target(read: Any) -> Target:
    return Target("few", lambda rng: rng.randrange(10), read, (ConnectionError,), 1 << 20)


def test_an_error_that_is_not_ours_is_a_fault_that_can_be_made_again() -> None:
    def read(number: int) -> None:
        if number == 7:
            raise KeyError(number)
        raise ConnectionError

    outcome = run(target(read), seed=3, inputs=100)

    (fault,) = outcome.faults.values()
    assert (fault.what, fault.seed) == ("KeyError", 3)
    assert loop.input_of(target(read), 3, fault.number) == 7
    assert outcome.ends.keys() == {"KeyError", "ConnectionError"}


def test_a_hang_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SECONDS", 0.05)

    outcome = run(target(lambda number: time.sleep(5)), seed=0, inputs=1)

    assert list(outcome.ends) == ["HangError"]
    assert outcome.faults


@pytest.mark.parametrize("touched", [True, False])
def test_too_much_memory_is_a_fault(touched: bool) -> None:
    def read(number: int) -> None:
        np.ones(64 << 20, np.uint8) if touched else np.empty(64 << 20, np.uint8)
        raise ConnectionError

    outcome = run(target(read), seed=0, inputs=1)

    assert list(outcome.ends) == ["took memory"]


def test_a_death_is_a_fault_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process itself is another test's; here it is said how it ended."""
    deaths = iter([4, 8])

    def die_twice(kind: str, numbers: tuple[Any, ...], *rest: Any) -> Any:
        number = next(deaths, None)
        if number is None:
            return loop.Outcome(inputs=numbers[1]), 0, "exit code 0"
        return None, number, "SIGSEGV"

    monkeypatch.setattr(processes, "_run", die_twice)

    outcome = run_apart("handshakes", seed=0, inputs=10, work=tmp_path)

    (fault,) = outcome.faults.values()
    assert (fault.what, fault.number, fault.where) == ("died", 4, "SIGSEGV")
    assert outcome.inputs == 10


def test_a_kind_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    outcome = run_apart("handshakes", seed=0, inputs=50, work=tmp_path)

    assert outcome.inputs == 50
    assert set(outcome.ends) == {"NotProvenError", "ConnectionError"}


def test_a_reader_that_believes_a_changed_manifest_is_found(
    monkeypatch: pytest.MonkeyPatch, written: Path, tmp_path: Path
) -> None:
    reading = target_of("checkpoint-manifests", tmp_path, written)
    monkeypatch.setattr(
        manifest, "unsealed", lambda data: {k: v for k, v in data.items() if k != SEAL}
    )

    outcome = run(reading, seed=0, inputs=100)

    assert "WrongResultError" in outcome.ends


def test_the_same_seed_gives_the_same_inputs(written: Path, tmp_path: Path) -> None:
    for kind in SHARES:
        folder = tmp_path / kind
        one, other = (target_of(kind, folder / name, written) for name in ("one", "other"))
        assert repr(one.make(Random(5))) == repr(other.make(Random(5)))
