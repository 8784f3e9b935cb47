"""The checkpoints of a run from which its training can go on, and which of them are kept."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.manifest import MANIFEST, read_manifest
from ps.checkpoint.read import CheckpointReader
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.run.directory import checkpoints_of
from scheduler.run.retention import Link, remove, superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCut:
    """A checkpoint of a run that says how far the job was.

    Args:
        path: its folder.
        state: of the coordinator at its step.
        reader: of its files.
    """

    path: Path
    state: CoordinatorState
    reader: CheckpointReader


def saved_cuts(run: Path, damaged: Callable[[str], None]) -> Iterator[SavedCut]:
    """Yield the checkpoints that a run can go on from, the newest first.

    Manifests are read, and sizes of files. What else is damaged is found by who reads the files.

    Args:
        damaged: is told of each one that is passed over, and why.
    """
    for path in reversed(checkpoints_of(run)):
        try:
            cut = saved_cut(path)
        except CheckpointError as error:
            damaged(f"the checkpoint {path.name} can't be gone on from: {error}")
        else:
            yield cut


def saved_cut(path: Path) -> SavedCut:
    """Open a checkpoint to go on from; raises CheckpointError where that can't be done."""
    reader = CheckpointReader(path)
    if not reader.manifest.training:
        raise CheckpointError(f"{path / MANIFEST} does not say how far the job was")
    try:
        state = CoordinatorState.from_json(reader.manifest.training)
        if state.step != reader.manifest.step:
            raise ValueError(f"its state is of step {state.step}, not {reader.manifest.step}")
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST}: {error}") from error
    for files in reader.chain:
        files.check_sizes()
    return SavedCut(path=path, state=state, reader=reader)


def remove_superseded(run: Path, keep: int, damaged: Collection[Path] = frozenset()) -> list[Path]:
    """Remove the checkpoints of a run that are older than the newest full ones; return them.

    Args:
        keep: how many full ones are kept, with the deltas above them and whatever these need.
        damaged: those that turned out to be; they don't count.

    Raises:
        OSError: one could not be taken away; the others before it are.
    """
    paths = {path.name: path for path in checkpoints_of(run)}
    gone = superseded([_link(path, path not in damaged) for path in paths.values()], keep)
    for name in gone:
        with suppress(FileNotFoundError):  # somebody was faster
            remove(paths[name])
    return [paths[name] for name in gone]


def _link(path: Path, whole: bool) -> Link:
    try:
        manifest, _ = read_manifest(path / MANIFEST)
    except CheckpointError:
        return Link(path.name, is_full=False)
    parent = None if manifest.parent is None else manifest.parent.name
    return Link(path.name, is_full=whole and manifest.kind == "full", parent=parent)
