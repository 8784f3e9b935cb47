"""What a join of samples with labels has done, step by step, so that it can be gone on with.

A step is what was taken of both streams at once, and until when all of each is known: what a clock
decided. What waits follows from the steps, and is written down from time to time, so that few of
them have to be done again: `state-N.npz` has what is known after step N, `steps-N.jsonl` the steps
after it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from runtime.durable import flush_directory, make_folder, new_file
from runtime.strict_json import json_text
from runtime.typed import from_json, to_json
from worker.data.plan import FilePlan
from worker.errors import DataError

_FILES = "files"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A file of a stream: its plan, and when it arrived, seconds since 1970."""

    plan: FilePlan
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinStep:
    """What was taken at once.

    Args:
        number: of the step, from 1 on.
        first_file: number of the first of the files of samples.
        samples, labels: files.
        samples_until, labels_until: all that arrived before is known, seconds since 1970.
    """

    number: int
    first_file: int
    samples: tuple[TakenFile, ...]
    labels: tuple[TakenFile, ...]
    samples_until: float
    labels_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known after a step.

    Args:
        arrays: of the join; empty: nothing.
        files: of samples of which rows may be handed on, by number.
        next_file: the number of the next one.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    files: dict[int, TakenFile]
    next_file: int


@dataclass(frozen=True, slots=True)
class _Files:
    numbers: tuple[int, ...]
    files: tuple[TakenFile, ...]
    next_file: int


class JoinLog:
    """Writes steps and states down, and reads them back.

    Args:
        folder: what is in it is its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take_up(self, number: int) -> tuple[Kept, list[JoinStep]]:
        """Go on after a step: forget those after it.

        Returns:
            What is known after some step up to it, and the steps from there on.

        Raises:
            DataError: what was written down is gone.
        """
        begins = [each for each in self._begins() if each <= number]
        if not begins:
            if number == 0:
                self._forget_from(1)
                return Kept(arrays={}, files={}, next_file=0), []
            raise self._gone(number)
        begin = begins[-1]
        self._forget_from(begin + 1)
        steps = [step for step in self._steps(begin) if step.number <= number]
        if [step.number for step in steps] != list(range(begin + 1, number + 1)):
            raise self._gone(number)
        with new_file(self._steps_path(begin)) as file:
            for step in steps:
                file.write(_line(step))
        return self._kept(begin), steps

    def append(self, step: JoinStep) -> None:
        """Put a step onto the disk; raises OSError where there is no room."""
        make_folder(self._folder)
        path = self._steps_path(max(self._begins(), default=0))
        with open(path, "ab") as file:
            before = file.tell()
            file.write(_line(step))
            file.flush()
            os.fsync(file.fileno())
        if before == 0:
            flush_directory(self._folder)

    def save(self, number: int, kept: Kept) -> None:
        """Put what is known after a step onto the disk: the newest."""
        make_folder(self._folder)
        files = _Files(tuple(kept.files), tuple(kept.files.values()), kept.next_file)
        text = np.frombuffer(json_text(to_json(files)).encode(), np.uint8)
        with new_file(self._state_path(number)) as file:
            arrays: dict[str, Any] = {**kept.arrays, _FILES: text}
            np.savez(file, **arrays)

    def forgettable(self, below: int) -> tuple[list[str], list[str]]:
        """Return the paths of samples and of labels that `forget` would forget."""
        begins = [each for each in self._begins() if each <= below]
        samples: dict[str, None] = {}
        labels: dict[str, None] = {}
        for begin in begins[:-1]:
            samples.update((file.plan.path, None) for file in self._files_at(begin).files)
            for step in self._steps(begin):
                samples.update((file.plan.path, None) for file in step.samples)
                labels.update((file.plan.path, None) for file in step.labels)
        if len(begins) > 1:
            for file in self._files_at(begins[-1]).files:
                samples.pop(file.plan.path, None)
        return list(samples), list(labels)

    def forget(self, below: int) -> None:
        """Nobody begins before a step any more."""
        begins = [each for each in self._begins() if each <= below]
        for begin in begins[:-1]:
            self._state_path(begin).unlink(missing_ok=True)
            self._steps_path(begin).unlink(missing_ok=True)

    def _begins(self) -> list[int]:
        """Return after which steps there is a state; 0 is known, or where steps follow it."""
        found = {int(path.stem.removeprefix("state-")) for path in self._folder.glob("state-*.npz")}
        if self._steps_path(0).exists():
            found.add(0)
        return sorted(found)

    def _kept(self, begin: int) -> Kept:
        files = self._files_at(begin)
        arrays: Arrays = {}
        if begin:
            with np.load(self._state_path(begin), allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files if name != _FILES}
        by_number = dict(zip(files.numbers, files.files, strict=True))
        return Kept(arrays=arrays, files=by_number, next_file=files.next_file)

    def _files_at(self, begin: int) -> _Files:
        if begin == 0:
            return _Files((), (), 0)
        try:
            with np.load(self._state_path(begin), allow_pickle=False) as data:
                return from_json(_Files, json.loads(data[_FILES].tobytes()))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise self._gone(begin) from error

    def _steps(self, begin: int) -> list[JoinStep]:
        try:
            lines = self._steps_path(begin).read_bytes().split(b"\n")[:-1]
            return [from_json(JoinStep, json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise self._gone(begin) from error

    def _forget_from(self, begin: int) -> None:
        """Remove what begins at a step or later."""
        for each in self._begins():
            if each >= begin:
                self._state_path(each).unlink(missing_ok=True)
                self._steps_path(each).unlink(missing_ok=True)

    def _gone(self, number: int) -> DataError:
        return DataError(
            what="what waited for its label is not known any more",
            file=str(self._folder),
            got=f"what the checkpoint goes on from, step {number:,} of the join, is not there",
            remedy="Restore the run directory, or begin a new run with run.init_from",
        )

    def _state_path(self, number: int) -> Path:
        return self._folder / f"state-{number:012d}.npz"

    def _steps_path(self, number: int) -> Path:
        return self._folder / f"steps-{number:012d}.jsonl"


def _line(step: JoinStep) -> bytes:
    return (json_text(to_json(step)) + "\n").encode()
