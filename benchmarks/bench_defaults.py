"""Measure how well optimizers learn that nobody has tuned: AUC after one epoch, in sync.

    python benchmarks/bench_defaults.py jobs/dlrm.yaml=data/criteo-like
    python benchmarks/bench_defaults.py jobs/adult.yaml=data/adult --batches 256 --seeds 3

Each argument is a job file and the folder of its data, with train/ and test/. One JSON line `auc`
for every job, batch size and choice, and at the end one line `behind_best` for every choice: by how
much it is behind the best of them, on average and at worst, over all jobs and batch sizes. That is
how the defaults were chosen, see docs/embedding.md. Exits 2 where it can't be run as it was called,
1 where a job failed.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from bench.command_line import finish
from bench.lines import emit
from bench.runs import Run
from experiments.training import TrainingRuns

# Of the tables and of the dense part.
_ADAM = {"type": "adam", "learning_rate": 0.001}
CHOICES = {
    "adagrad .05 from 1e-8, adam .001": (
        {"type": "adagrad", "learning_rate": 0.05, "initial_accumulator": 1e-8},
        _ADAM,
    ),
    "adagrad .02 from 1e-8, adam .001": (
        {"type": "adagrad", "learning_rate": 0.02, "initial_accumulator": 1e-8},
        _ADAM,
    ),
    "rowwise_adagrad .05 from 1e-8, adam .001": (
        {"type": "rowwise_adagrad", "learning_rate": 0.05, "initial_accumulator": 1e-8},
        _ADAM,
    ),
    "adagrad .05 from 1e-8, adagrad .01 from 1e-4": (
        {"type": "adagrad", "learning_rate": 0.05, "initial_accumulator": 1e-8},
        {"type": "adagrad", "learning_rate": 0.01, "initial_accumulator": 1e-4},
    ),
    "adagrad .02 from .1, adagrad .01 from .1": (
        {"type": "adagrad", "learning_rate": 0.02, "initial_accumulator": 0.1},
        {"type": "adagrad", "learning_rate": 0.01, "initial_accumulator": 0.1},
    ),
    "adagrad .02 from .1, adam .001": (
        {"type": "adagrad", "learning_rate": 0.02, "initial_accumulator": 0.1},
        _ADAM,
    ),
    "adam .001, adam .001": (_ADAM, _ADAM),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="+", metavar="JOB.yaml=FOLDER")
    parser.add_argument("--batches", default="256,2048", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    for text in arguments.jobs:
        job, _, folder = text.partition("=")
        for path in (Path(job), Path(folder, "train"), Path(folder, "test")):
            if not path.exists():
                parser.error(f"there is no {path} (of {text!r}, which must be JOB.yaml=FOLDER)")
    sizes = arguments.batches.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        parser.error(f"--batches must be whole numbers above 0, got {arguments.batches!r}")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be >= 1, got {arguments.seeds}")
    arguments.sizes = [int(size) for size in sizes]
    return arguments


def runs(job: str, folder: str, size: int, choice: str, seeds: int) -> Iterator[Run]:
    settings = [
        f"data.train={folder}/train",
        f"data.eval={folder}/test",
        f"data.batch_size={size}",
        "data.epochs=1",
        f"training.global_batch={size}",
        "training.mode=sync",
        "cluster.workers=1",
        "cluster.servers=1",
    ]
    for section, optimizer in zip(("embedding", "model"), CHOICES[choice], strict=True):
        settings.append(f"{section}.optimizer={json.dumps(optimizer, allow_nan=False)}")
    names = {"job": Path(job).stem, "batch": size, "choice": choice}
    for seed in range(1, seeds + 1):
        yield Run("defaults", names, seed, job, tuple(settings))


def run(arguments: argparse.Namespace) -> None:
    behind: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-defaults-") as out:
        train = TrainingRuns(Path(out))
        for text in arguments.jobs:
            job, _, folder = text.partition("=")
            for size in arguments.sizes:
                found = {}
                for choice in CHOICES:
                    of_seeds = runs(job, folder, size, choice, arguments.seeds)
                    found[choice] = mean(train(one)["auc"] for one in of_seeds)
                    emit(
                        "auc",
                        found[choice],
                        "",
                        job=Path(job).stem,
                        batch=size,
                        choice=choice,
                        seeds=arguments.seeds,
                    )
                for choice, auc in found.items():
                    behind[choice].append(max(found.values()) - auc)
    for choice, differences in behind.items():
        emit("behind_best", mean(differences), "", worst=max(differences), choice=choice)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
