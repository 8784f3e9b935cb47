"""What has to hold of a run when it is over, whatever has befallen it."""

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ps.checkpoint.manifest import MANIFEST, CheckpointError
from ps.net.listener import Listener
from scheduler.run.directory import CONTROL_FILE, FAILURE_FILE, RESULT_FILE, checkpoints_of
from scheduler.run.lease import HOLDER_FILE
from synchromesh.checkpoints import open_checkpoint

# What an undisturbed run in sync has, bit for bit.
SAME_IN_SYNC = ("model_digest", "global_step", "eval", "train_loss")


def wrong_with_result(
    result: dict[str, Any], undisturbed: dict[str, Any], *, mode: str, samples: int
) -> list[str]:
    """Return what a result should not be; empty where it is right.

    Args:
        undisturbed: the result of the same job without faults.
        samples: rows times epochs.
    """
    ended = {name: result[f"samples_{name}"] for name in ("trained", "dropped", "skipped")}
    wrong = []
    if sum(ended.values()) != samples:
        wrong.append(f"samples {ended} are {sum(ended.values()):,} in all, not {samples:,}")
    if mode == "sync":
        wrong += [
            f"{name} is {result[name]}, of the undisturbed run {undisturbed[name]}"
            for name in SAME_IN_SYNC
            if result[name] != undisturbed[name]
        ]
    return wrong


def wrong_with_run(run: Path, *, damaged: Collection[str]) -> list[str]:
    """Return what should not be in a run directory, or is wrong with its checkpoints.

    Args:
        damaged: names of checkpoints that were damaged on purpose.
    """
    wrong = [f"{path} is left" for path in sorted(run.rglob("*.partial*"))]
    wrong += [
        f"{run / name} is left"
        for name in (CONTROL_FILE, FAILURE_FILE, HOLDER_FILE)
        if (run / name).exists()
    ]
    try:
        result = json.loads((run / RESULT_FILE).read_text())
    except (OSError, ValueError) as error:
        return [*wrong, str(error)]
    found = [path for path in checkpoints_of(run) if isinstance(path, Path)]
    if [Path(result["checkpoint"])] != found[-1:]:
        wrong.append(f"{result['checkpoint']} of the result is not the newest of {found}")
    unusable = set(damaged)
    for path in found:
        if path.name in unusable:
            continue
        try:
            checkpoint = open_checkpoint(path)
            checkpoint.verify()
        except (CheckpointError, OSError) as error:
            below = json.loads((path / MANIFEST).read_text())["parent"]
            if below is not None and below["name"] in unusable:
                unusable.add(path.name)
            else:
                wrong.append(f"{path} does not verify: {error}")
    return wrong


def abandoned_folders(temporary: Path) -> list[str]:
    """Return the folders of sockets that not even the next process that listens removes.

    Whoever is killed leaves its folder; whoever listens next removes those of the dead.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        listener = Listener("nobody", secret=b"", serve=lambda _: None)
        listener.close()
    finally:
        tempfile.tempdir = before
    return [
        f"{path} is left"
        for pattern in ("synchromesh-*", ".synchromesh-*")
        for path in sorted(temporary.glob(pattern))
    ]
