"""The checkpoints of a run from which its training can go on, and which of them are kept."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.intact import newest_intact
from ps.checkpoint.manifest import MANIFEST, read_manifest
from ps.checkpoint.read import CheckpointReader
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.run.directory import CHECKPOINTS, checkpoints_of
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


def saved_cuts(
    run: Path, damaged: Callable[[str], None], *, without: Collection[Path] = ()
) -> Iterator[SavedCut]:
    """Yield the checkpoints that a run can go on from, the newest first.

    Manifests are read, and sizes of files. What else is damaged is found by who reads the files.

    Args:
        damaged: is told of each one that is passed over, and why.
        without: those that have turned out to be; nothing is said of them.
    """
    skip: set[Path] = set(without)
    while True:
        found = newest_intact(run / CHECKPOINTS, with_training=True, skip=skip)
        for passed in found.passed:
            skip.add(passed.path)
            damaged(f"the checkpoint {passed.path.name} can't be gone on from: {passed.reason}")
        if found.reader is None:
            return
        path = found.reader.directory
        skip.add(path)
        try:
            state = CoordinatorState.from_json(found.reader.manifest.training)
            if state.step != found.reader.manifest.step:
                raise ValueError(f"its state is of step {state.step}")
        except ValueError as error:
            damaged(f"the checkpoint {path.name} can't be gone on from: {error}")
        else:
            yield SavedCut(path=path, state=state, reader=found.reader)


def remove_superseded(run: Path, keep: int, damaged: Collection[Path] = frozenset()) -> list[Path]:
    """Remove the checkpoints of a run that are older than the newest full ones; return them.

    Args:
        keep: how many full ones are kept, with the deltas above them and whatever these need.
        damaged: those that turned out to be; they don't count.

    Raises:
        OSError: one could not be taken away; the others before it are.
    """
    links, epoch = [], 0
    for path in checkpoints_of(run):
        link, own = _link(path, path not in damaged)
        # One that says no epoch stands where its step is.
        epoch = epoch if own is None else own
        links.append((epoch, link))
    links.sort(key=lambda link: link[0])
    gone = [run / CHECKPOINTS / name for name in superseded([link for _, link in links], keep)]
    for path in gone:
        with suppress(FileNotFoundError):  # somebody was faster
            remove(path)
    return gone


def first_needed(run: Path) -> int:
    """Return the first batch that some checkpoint of a run may be gone on with; 0 where in doubt.

    Of a stream: what was planned before it is needed no more.
    """
    for path in checkpoints_of(run):
        try:
            manifest, _ = read_manifest(path / MANIFEST)
            return CoordinatorState.from_json(manifest.training).ledger.low_water
        except (CheckpointError, ValueError):
            return 0
    return 0


def _link(path: Path, whole: bool) -> tuple[Link, int | None]:
    """Return what a checkpoint lies on, and its recovery epoch where its manifest can be read."""
    try:
        manifest, _ = read_manifest(path / MANIFEST)
    except CheckpointError:
        return Link(path.name, kind="unreadable"), None
    parent = None if manifest.parent is None else manifest.parent.name
    kind = manifest.kind if whole else "damaged"
    return Link(path.name, kind=kind, parent=parent), manifest.recovery_epoch
