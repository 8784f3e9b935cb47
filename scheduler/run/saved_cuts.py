"""The checkpoints of a run from which its training can go on, and which of them are kept."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint.chain import open_chain
from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.intact import newest_intact
from ps.checkpoint.read import CheckpointReader
from runtime.places import Place
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.run.directory import (
    Listed,
    listed_checkpoints,
    place_of_checkpoints,
    run_id_of,
)
from scheduler.run.retention import Link, remove, superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCut:
    """A checkpoint of a run that says how far the job was.

    Args:
        path: its folder.
        state: of the coordinator at its step.
        reader: of its files.
    """

    path: Place
    state: CoordinatorState
    reader: CheckpointReader


def saved_cuts(
    run: Path, damaged: Callable[[str], None], *, without: Collection[Place] = ()
) -> Iterator[SavedCut]:
    """Yield the checkpoints that a run can go on from, the newest first.

    Manifests are read, and sizes of files. What else is damaged is found by who reads the files.
    Only what one that turned out to be lies on is read here: once for all that lie on it.

    Args:
        damaged: is told of each one that is passed over, and why.
        without: those that have turned out to be; nothing is said of them.
    """
    skip: set[Place] = set(without)
    suspects = _chains_of(skip)
    while True:
        found = newest_intact(
            place_of_checkpoints(run),
            with_training=True,
            run_id=run_id_of(run),
            suspects=suspects,
            skip=skip,
        )
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


def _chains_of(checkpoints: Collection[Place]) -> set[Place]:
    """Return all folders that some checkpoints are read from, as far as that can be seen."""
    found: set[Place] = set()
    for path in checkpoints:
        with suppress(CheckpointError, OSError):
            found.update(files.directory for files in open_chain(path))
    return found


def remove_superseded(
    run: Path, keep: int, damaged: Collection[Place] = frozenset()
) -> list[Place]:
    """Remove the checkpoints of a run that are older than the newest full ones; return them.

    Args:
        keep: how many full ones are kept, with the deltas above them and whatever these need.
        damaged: those that turned out to be; they don't count.

    Raises:
        OSError: one could not be taken away; the others before it are.
    """
    own = run_id_of(run)
    links = [
        _link(each, each.path not in damaged)
        for each in listed_checkpoints(place_of_checkpoints(run))
        if each.run_id in (None, own)
    ]
    gone = [place_of_checkpoints(run) / name for name in superseded(links, keep)]
    for path in gone:
        with suppress(FileNotFoundError):  # somebody was faster
            remove(path)
    return gone


def first_needed(run: Path) -> int:
    """Return the first batch that some checkpoint of a run may be gone on with; 0 where in doubt.

    Of a stream: what was planned before it is needed no more.
    """
    first: list[int] = []
    for listed in listed_checkpoints(place_of_checkpoints(run)):
        if listed.manifest is None:
            return 0
        try:
            state = CoordinatorState.from_json(listed.manifest.training)
        except ValueError:
            return 0
        first.append(state.ledger.low_water)
    return min(first, default=0)


def _link(listed: Listed, whole: bool) -> Link:
    """Return what a checkpoint lies on."""
    manifest = listed.manifest
    if manifest is None:
        return Link(listed.path.name, kind="unreadable")
    parent = None if manifest.parent is None else manifest.parent.name
    return Link(listed.path.name, kind=manifest.kind if whole else "damaged", parent=parent)
