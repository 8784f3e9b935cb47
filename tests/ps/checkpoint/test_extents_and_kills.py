"""A process with tables on a disk is killed again and again: the newest whole cut is what it was.

Run as a program it is that process: it goes on from the newest cut, trains, and writes cuts.
"""

import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embedding import Adam, CounterAdmission, TableSpec, Tiers
from ps.checkpoint.intact import checkpoints_in, names_in, newest_intact
from ps.checkpoint.manifest import Parent
from ps.checkpoint.restore import start_shard_from

TABLES = (
    TableSpec(name="a", dim=60, optimizer=Adam()),
    TableSpec(name="b", dim=31, value_dtype="bfloat16", admission=CounterAdmission(min_count=2)),
)
KILLS = 6


@pytest.mark.slow
def test_the_newest_whole_cut_is_restored_bit_for_bit_after_any_kill(
    small_job: Any, tmp_path: Path
) -> None:
    draw = random.Random(5)
    digests: dict[int, str] = {}
    steps: list[int] = []
    for number in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        cuts, pieces, lines = number // 2, draw.randrange(60), []
        while cuts or pieces:  # of the first cuts all, of the next one some
            lines.append(child.stdout.readline())
            cuts -= bool(cuts) and "cut" in lines[-1]
            pieces -= not cuts and bool(pieces) and "piece" in lines[-1]
        time.sleep(draw.uniform(0.0, 0.05))
        child.send_signal(signal.SIGKILL)
        said = list(map(json.loads, [*lines, *child.stdout.read().splitlines()]))
        # What it began with is what was told of that step; what comes then is another history.
        told = {each["step"]: each["digest"] for each in said if "digest" in each}
        for step, digest in list(told.items())[:1]:
            assert digests.get(step, digest) == digest
        digests |= told
        child.wait()
        reader = newest_intact(tmp_path / "cuts").reader
        if reader is None:
            continue
        reader.verify()
        job = small_job(TABLES, dense_size=2500, initialize=False)
        start_shard_from(job.shards[0], reader, recovery_epoch=3, goes_on=True)
        assert job.digest == digests[reader.manifest.step]
        steps.append(reader.manifest.step)
    assert steps == sorted(steps)
    assert len(steps) >= KILLS - 2
    assert steps[-1] > 10


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_until_killed(folder: Path) -> None:
    here = Path(__file__).parent
    small_job = _module(here.parent / "conftest.py", "jobs").SmallJob
    for each in ("cuts", "disk"):
        (folder / each).mkdir(exist_ok=True)
    tiers = {t.name: Tiers(memory_bytes=1 << 16, path=str(folder / "disk")) for t in TABLES}
    reader = newest_intact(folder / "cuts").reader
    whole = {path.name for path in checkpoints_in(folder / "cuts")}
    for name in names_in(folder / "cuts"):
        if name not in whole:  # the kill has left it
            shutil.rmtree(folder / "cuts" / name)
    job = _module(here / "conftest.py", "cuts").CutJob(
        small_job, folder / "cuts", num_shards=1, tables=TABLES, keys=3000, batch=200,
        tiers=tiers, initialize=reader is None,
    )  # fmt: skip
    shard = job.job.shards[0]
    if reader is not None:
        start_shard_from(shard, reader, recovery_epoch=3, goes_on=True)
        job.batches = shard.step
        job.parent = Parent(reader.directory.name, reader.seal)

    def piece() -> None:
        nonlocal pieces
        pieces += 1
        print(json.dumps({"piece": pieces}), flush=True)
        if pieces % 10 == 0:  # what is changed meanwhile is one more piece
            job.train()

    pieces, began = 0, shard.step

    while True:
        print(json.dumps({"step": shard.step, "digest": job.job.digest}), flush=True)
        if shard.step != began:
            is_full = job.parent is None or shard.step % 3 == 0
            path = job.cut(changed_only=not is_full, meanwhile=piece)
            print(json.dumps({"cut": path.name}), flush=True)
            if is_full:
                _remove_before(path)
        job.train(2, evict=shard.step % 5 == 0)


def _remove_before(full: Path) -> None:
    """Keep the newest two full cuts, and what lies on them."""
    fulls = sorted(full.parent.glob("full-*"))[-2:]
    for path in full.parent.iterdir():
        if path.name.partition("-")[2] < fulls[0].name.partition("-")[2]:
            shutil.rmtree(path)


if __name__ == "__main__":
    train_until_killed(Path(sys.argv[1]))
