"""Full cuts of a table with tiers, and restoring them: by reference to its files, and by copies."""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Literal
from unittest.mock import patch

from bench.cut_shard import CutShard, Training, restore, store_of
from bench.disk_speed import forget
from bench.lines import MEGA, emit
from embedding import Adam, Tiers
from ps.checkpoint.pace import SHARE_OF_INTERVAL
from ps.checkpoint.placed import is_extent

By = Literal["reference", "copy"]
WAYS: tuple[By, ...] = ("reference", "copy")
EVERY_SECONDS = 600  # of a job that is not told otherwise


def measure_cuts(
    rows: int, dim: int, tiers: Tiers, folder: Path, *, repeats: int, seconds: float
) -> None:
    """Print what cuts of a table take, what training loses by them, and what restoring takes.

    Args:
        folder: for checkpoints, on the disk of the tiers.
        seconds: of each time of training that begins with a cut, or goes without.
    """
    store = store_of(dim, track_usage=False, optimizer=Adam())
    cut = CutShard(store, rows, tiers)
    cut.train(min(seconds, 5.0))
    found: dict[str, list[float]] = defaultdict(list)
    training: dict[str, list[Training]] = defaultdict(list)
    beside: dict[str, list[list[Training]]] = defaultdict(list)
    for number in range(repeats + 1):
        for by in WAYS:
            with _done_by(by):
                _cut_and_restore(cut, tiers, by, folder / f"{by}-{number}", found)
        # Each of the ways between two windows without: what else the machine does may drift.
        turns = WAYS if number % 2 else tuple(reversed(WAYS))
        of_window = seconds if number else min(seconds, 5.0)
        training["quiet"].append(cut.train(of_window))
        for by in turns:
            cut.freeze(changed_only=False)
            path = folder / f"busy-{by}-{number}"
            with _done_by(by):
                spread = EVERY_SECONDS * SHARE_OF_INTERVAL
                training[by].append(cut.train_while_writing(path, of_window, spread))
            training["quiet"].append(cut.train(of_window))
            beside[by].append(training["quiet"][-2:])
            shutil.rmtree(path)
        for old in folder.glob(f"*-{number - 1}"):  # each cut has one before it, as in a job
            shutil.rmtree(old)
        if number == 0:  # first touches of files and kernels
            for figures in (found, training, beside):
                figures.clear()
    size: dict[str, float] = {"rows": rows, "repeats": repeats, "load": os.getloadavg()[0]}
    for by in WAYS:
        emit(f"cut by {by}", median(found[f"{by} cut"]), "s",
             written=median(found[f"{by} bytes"]) / MEGA, unit_written="MB",
             cpu=median(found[f"{by} cpu"]), freeze_ms=1e3 * median(found[f"{by} freeze"]),
             **size)  # fmt: skip
    for by in WAYS:
        emit(f"restore by {by}", median(found[f"{by} restore"]), "s",
             cpu=median(found[f"{by} restore cpu"]),
             rows_a_second=rows / median(found[f"{by} restore"]), **size)  # fmt: skip
    for by in WAYS:
        _emit_training(by, list(zip(training[by], beside[by], strict=True)), size)


def _emit_training(
    by: By, windows: list[tuple[Training, list[Training]]], size: dict[str, float]
) -> None:
    """Print what a cut takes of training while it is written, and of the time between two cuts.

    Args:
        windows: with a cut, and those without one before and after.
    """
    slower, lost, own, other = [], [], [], []
    for busy, quiets in windows:
        rate = mean(quiet.rate for quiet in quiets)
        slower.append(1 - busy.rate_before(busy.writing) / rate)
        lost.append(busy.seconds * (1 - busy.rate / rate))
        of_quiet = mean(quiet.own_before(quiet.seconds) for quiet in quiets)
        own.append(busy.own_before(busy.writing) / of_quiet - 1)
        other.append(busy.cpu_of_others - len(busy.steps) * mean(
            quiet.cpu_of_others / len(quiet.steps) for quiet in quiets
        ))  # fmt: skip
    rates = [quiet.rate for _, quiets in windows for quiet in quiets]
    emit(f"training while a cut by {by} is written, slower", median(slower), "of its rate",
         target=0.05, at_most=True, min=min(slower), max=max(slower), own_cpu=median(own),
         writing=median(busy.writing for busy, _ in windows), cut_cpu=median(other),
         steps_a_second=median(rates), **size)  # fmt: skip
    emit(f"training with a cut by {by} each minute, slower", median(lost) / 60, "of its rate",
         target=0.05, at_most=True, min=min(lost) / 60, max=max(lost) / 60,
         each_ten_minutes=median(lost) / 600, **size)  # fmt: skip


def _cut_and_restore(
    cut: CutShard, tiers: Tiers, by: By, path: Path, found: dict[str, list[float]]
) -> None:
    found[f"{by} freeze"].append(cut.freeze(changed_only=False))
    cpu, began = time.process_time(), time.perf_counter()
    files = cut.write(path, changed_only=False)
    found[f"{by} cut"].append(time.perf_counter() - began)
    found[f"{by} cpu"].append(time.process_time() - cpu)
    found[f"{by} bytes"].append(sum(e.bytes for e in files if not is_extent(e.path)))
    cut.finish(path, files)
    forget(file for file in path.rglob("*") if file.is_file())
    cpu, began = time.process_time(), time.perf_counter()
    restored = restore(cut.store, path, tiers)
    found[f"{by} restore"].append(time.perf_counter() - began)
    found[f"{by} restore cpu"].append(time.process_time() - cpu)
    if len(restored.tables[0]) != cut.rows:
        raise RuntimeError(f"{len(restored.tables[0])} rows came back of {cut.rows}")


@contextmanager
def _done_by(by: By) -> Iterator[None]:
    """Have a checkpoint written as it is where it lies on another disk than the tiers."""
    if by == "reference":
        yield
        return
    with patch("ps.checkpoint.cut.can_refer", lambda *_: False):
        yield
