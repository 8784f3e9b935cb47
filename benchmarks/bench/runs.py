"""What an experiment consists of: runs that are known by their settings, and what came of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.strict_json import json_text

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is trained and on what.

    Args:
        out: directory of the results and of all run directories.
        data: directory of the generated data set; its train/ and test/ are read.
        rows: train rows that it has.
        seeds: how many seeds headline figures are taken over.
        real: directories of real data sets by the name of their job file, each with train/ and
            test/.
        quick: train little: to see that everything runs.
    """

    out: Path
    data: Path
    rows: int
    seeds: int
    real: dict[str, Path] = field(default_factory=dict)
    quick: bool = False

    def samples(self, wanted: int) -> int:
        """Return how many samples a run trains that would like to train so many."""
        return min(wanted, self.rows, 16_384 if self.quick else self.rows)


@dataclass(frozen=True, slots=True)
class Run:
    """One training job, or one simulation.

    Args:
        experiment: its name, E1 and so on.
        case: what tells its row of a table from others; the same for all seeds.
        seed: of the job.
        job: path of the job file; empty where no job is trained.
        overrides: of the job file, each key.path=value.
        keep_checkpoint: whether other runs start from it.
    """

    experiment: str
    case: dict[str, Any]
    seed: int
    job: str = ""
    overrides: tuple[str, ...] = ()
    keep_checkpoint: bool = False

    @property
    def key(self) -> str:
        """A digest of all that decides what comes out, but for the code."""
        settings = Path(self.job).read_text() if self.job else ""
        case = {} if self.job else self.case
        parts = [self.experiment, case, self.seed, settings, self.overrides]
        return hashlib.sha256(
            json.dumps(parts, sort_keys=True, allow_nan=False).encode()
        ).hexdigest()[:16]

    def directory(self, out: Path) -> Path:
        """Return its run directory."""
        return out / f"{self.experiment}-{self.key}"

    def label(self) -> str:
        """Name the run for people."""
        case = " ".join(f"{name}={value}" for name, value in self.case.items())
        return f"{self.experiment} {case} seed={self.seed}"


class Results:
    """Lines of finished runs in a file, one JSON object each; a run that is there is not repeated.

    Args:
        path: results.jsonl. A last line that was cut off by a crash is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._rows[row["key"]] = row

    def add(self, run: Run, figures: Row) -> None:
        """Append what came of a run."""
        row = {
            "key": run.key,
            "experiment": run.experiment,
            "case": run.case,
            "seed": run.seed,
            "job": run.job,
            "overrides": list(run.overrides),
            **figures,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Begun with a line feed, it is readable even behind a line that was cut off.
        with self._path.open("a") as file:
            file.write("\n" + json_text(row))
            file.flush()
            os.fsync(file.fileno())
        self._rows[run.key] = row

    def of(self, run: Run) -> Row | None:
        """Return what came of a run, or None."""
        return self._rows.get(run.key)

    def rows(self, runs: Iterable[Run]) -> list[Row]:
        """Return what came of those runs that are finished, in their order, by their names now."""
        found = [(run, self.of(run)) for run in runs]
        return [{**row, "case": run.case} for run, row in found if row is not None]


Plan = Callable[[Scale, Results], list[Run]]
Section = Callable[[list[Row]], list[str]]
Execute = Callable[[Run], Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment.

    Args:
        name: E1 and so on.
        title: heading of its section.
        plan: returns its runs, first what matters most. Later ones may depend on what came of
            earlier ones; those that can't be known yet are left out.
        section: returns the lines of its section, from what came of finished runs.
        simulate: carries out the runs that have no job.
    """

    name: str
    title: str
    plan: Plan
    section: Section
    simulate: Execute | None = None


def carry_out(
    experiment: Experiment,
    scale: Scale,
    results: Results,
    train: Execute,
    after: Callable[[Run], None] = lambda run: None,
) -> None:
    """Carry out what is missing of an experiment, planning anew after every run.

    Args:
        train: trains a run's job.
        after: is called after every run.
    """
    while True:
        missing = [run for run in experiment.plan(scale, results) if results.of(run) is None]
        if not missing:
            return
        run = missing[0]
        execute = train if run.job or experiment.simulate is None else experiment.simulate
        results.add(run, execute(run))
        after(run)
