"""A driver that joins samples with labels, on folders of its own, and dies at any moment.

Only what is on the disk outlives it, and a cut: the plan that a checkpoint has. It goes on from the
end of the log of its plan, or from a cut where that is lost; what was planned after that never was.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scheduler.coordinator.batch_cutter import BatchCutter
from scheduler.coordinator.growing_plan import GrowingPlan, PlanState
from scheduler.driver.trained_files import TrainedFiles
from scheduler.run.plan_log import PlanLog
from worker.data.arrivals import Arrivals
from worker.data.directory_stream import DirectoryStream
from worker.data.joined_arrivals import JoinedArrivals, first_position
from worker.data.label_join import LabelJoin
from worker.data.streams import Arrival
from worker.spec import FeatureSpec

_BEGINS = 1000.0  # the clock
_SAMPLES = FeatureSpec(label=None, dense=("d",), dense_transform="none", sparse=(), key="key")
_LABELS = FeatureSpec(label="label", dense=(), dense_transform="none", sparse=(), key="key")
_JOINED = FeatureSpec(label="label", dense=("d",), dense_transform="none", sparse=())
_KEPT = 2  # cuts


class _Folder(DirectoryStream):
    """A folder that is looked into whenever somebody asks, however long that takes."""

    def poll(self, *, most: int, now: float) -> list[Arrival]:
        self._next_listing = 0.0
        return super().poll(most=most, now=now)


class Died(Exception):
    """The driver is no more."""


@dataclass(frozen=True, slots=True)
class JoiningParts:
    """What is simulated; mutants replace a part."""

    arrivals: type[JoinedArrivals] = JoinedArrivals
    join: type[LabelJoin] = LabelJoin


@dataclass(slots=True)
class Story:
    """What arrives when, and what each sample is to be trained with.

    Args:
        files: (time, folder, columns).
        right: by the sample's number, which is its `d`.
    """

    files: list[tuple[float, str, dict[str, list[int]]]] = field(default_factory=list)
    right: dict[int, list[int]] = field(default_factory=dict)


class JoiningJob:
    """One driver after another.

    Args:
        seed: of all that happens.
        folder: for both streams and the run.
        parts: what is simulated.

    Attributes:
        trained: what each planned row was trained with, batch by batch: (sample, label).
        deaths: how often a driver died.
    """

    def __init__(self, seed: int, folder: Path, parts: JoiningParts | None = None) -> None:
        self._random = random.Random(f"joining {seed}")
        self._folder = folder
        self._parts = parts or JoiningParts()
        self._window = self._random.choice([0.0, 2.0, 5.0])
        self._late = self._random.choice([1.0, 3.0])
        self._again = self._random.random() < 0.5
        self.story = _story(self._random, self._window, self._late, again=self._again)
        self._to_come = list(self.story.files)
        self._now = _BEGINS
        self._cuts = [PlanState()]
        self._may_die = False
        self.trained: list[list[tuple[int, int]]] = []
        self.deaths = 0
        for name in ("samples", "labels", "run"):
            (folder / name).mkdir()

    def run(self) -> None:
        """Let all arrive and be trained, whoever dies."""
        self._begin()
        for _ in range(200):
            self._now += self._random.choice([0.0, 0.5, 2.0])
            self._arrive()
            self._may_die = self.deaths < 8
            try:
                self._turn()
            except Died:
                self.deaths += 1
                self._begin()
            if not self._to_come:
                break
        self._may_die = False
        for _ in range(300):
            self._now += 1.0
            self._turn()
            if self._arrivals.took_all and not self._arrivals.waits:
                break
        self._plan_what_came(ends=True)

    # One driver -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Go on from the newest cut, or from another one; with the log of the plan or without."""
        self._may_die = False
        if len(self._cuts) > 1 and self._random.random() < 0.3:
            self._cuts.pop()  # it was not whole
        state, run = self._cuts[-1], self._folder / "run"
        if self._random.random() < 0.3:
            for path in (run / "plan").glob("*"):
                path.unlink()
        self._log = PlanLog(run, state)
        self._cutter = BatchCutter(state, batch_size=5, group_size=1, close_seconds=3.0)
        self._plan, self._trained_files = GrowingPlan(state, lanes=1), TrainedFiles()
        for extension in self._log.extensions(state.planned):
            self._cutter.follow(extension)
            self._plan.grow(extension)
        for extension in self._log.extensions(0):
            self._trained_files.add(extension)
        del self.trained[self._plan.planned :]
        arrivals, begins = self._new_arrivals()
        arrivals.seek(self._cutter.position or begins)
        self._arrivals = arrivals

    def _new_arrivals(self) -> tuple[JoinedArrivals, dict[str, Any]]:
        streams = [
            _Folder(str(self._folder / name), late_seconds=1.0, removes=True)
            for name in ("samples", "labels")
        ]
        samples, labels = (
            Arrivals(stream, features, kinds=(), on_bad_file="fail")
            for stream, features in zip(streams, (_SAMPLES, _LABELS), strict=True)
        )
        arrivals = self._parts.arrivals(
            samples,
            labels,
            features=_JOINED,
            make_join=lambda: self._parts.join(
                window_seconds=self._window, late_seconds=self._late, again=self._again
            ),
            folder=self._folder / "run" / "arrived",
            most_remembered=self._random.choice([6, 10**6]),
        )
        for owner, name in (
            (arrivals, "_write_file"),
            (arrivals._log, "append"),
            (arrivals._log, "save"),
            (arrivals._log, "forget"),
            (samples, "remove"),
            (labels, "remove"),
        ):
            setattr(owner, name, self._mortal(getattr(owner, name)))
        return arrivals, first_position(streams[0].position, streams[1].position)

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Let the driver die before or after something is done, at times."""

        def called(*args: Any) -> Any:
            self._perhaps_die()
            found = call(*args)
            self._perhaps_die()
            return found

        return called

    def _perhaps_die(self) -> None:
        if self._may_die and self._random.random() < 0.04:
            raise Died

    def _turn(self) -> None:
        files = self._arrivals.take(most=64, now=self._now)
        self._cutter.add(files, self._arrivals.position, self._now, are_all=self._arrivals.took_all)
        self._plan_what_came(ends=False)
        if self._random.random() < 0.2:
            self._cut()

    def _plan_what_came(self, *, ends: bool) -> None:
        extension = self._cutter.cut(self._now, most=10**6, ends=ends)
        if extension is None:
            return
        self._perhaps_die()
        self._log.append(extension)
        self._plan.grow(extension)
        self._trained_files.add(extension)
        for batch_id in range(extension.first, extension.stop):
            self.trained.append(self._rows(batch_id))
        self._perhaps_die()

    def _rows(self, batch_id: int) -> list[tuple[int, int]]:
        (granted,) = self._plan.granted([batch_id])
        paths = {file.number: file.plan.path for file in granted.files}
        found: list[tuple[int, int]] = []
        for number, group, start, stop in granted.rows:
            table = pq.ParquetFile(paths[number]).read_row_group(group).slice(start, stop - start)
            numbers = [int(value) for value in table["d"].to_pylist()]
            found += zip(numbers, table["label"].to_pylist(), strict=True)
        return found

    def _cut(self) -> None:
        """Take a checkpoint that has some batches more, and let go of what no kept one needs."""
        self._plan.forget(below=self._random.randint(self._plan.known_from, self._plan.planned))
        state = self._plan.state()
        self._cuts = [*self._cuts, state][-_KEPT:]
        self._arrivals.is_in_cut(state.cursor.position, state.oldest_path)
        for path in self._trained_files.take(self._cuts[0].first):
            self._arrivals.remove(path)

    # The world --------------------------------------------------------------------------------

    def _arrive(self) -> None:
        while self._to_come and self._to_come[0][0] <= self._now:
            at, name, columns = self._to_come.pop(0)
            path = self._folder / name / f"{10**6 - len(self._to_come)}.parquet"
            pq.write_table(pa.table(columns), path)
            os.utime(path, (at, at))


def _story(rng: random.Random, window: float, late: float, *, again: bool) -> Story:
    """Draw what arrives; times are multiples of an eighth, so that none is rounded."""
    story, labels = Story(), list[tuple[float, int, int]]()
    samples: list[tuple[float, int, int]] = []
    for second in range(rng.randint(5, 25)):
        at = _BEGINS + second + rng.randrange(8) / 8
        keys = [rng.randrange(40) for _ in range(rng.randint(1, 9))]
        numbers = list(range(len(samples), len(samples) + len(keys)))
        samples += [(at, number, key) for number, key in zip(numbers, keys, strict=True)]
        story.files.append((at, "samples", {"d": numbers, "key": keys}))
        if rng.random() < 0.7:
            at += rng.randrange(8) / 8
            clicked = [rng.randrange(40) for _ in range(rng.randint(1, 9))]
            values = [int(rng.random() < 0.8) for _ in clicked]
            labels += [(at, key, value) for key, value in zip(clicked, values, strict=True)]
            story.files.append((at, "labels", {"key": clicked, "label": values}))
    story.files.sort(key=lambda file: file[0])
    labels.sort(key=lambda label: label[0])
    for came, number, key in samples:
        near = [
            (at, value)
            for at, other, value in labels
            if other == key and came - window - late <= at < came + window + late
        ]
        in_time = [value for at, value in near if at < came + window]
        label = in_time[0] if in_time else 0
        positive = label == 1 or any(value for _, value in near)
        story.right[number] = [0, 1] if again and positive else [label]
    return story
