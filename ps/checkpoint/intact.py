"""Which of a run's checkpoints a job can go on from: the newest that is all there."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.manifest import MANIFEST
from ps.checkpoint.read import CheckpointReader
from runtime.places import Place, StoredPath, folders_in, holding, place_of

# Recovery epoch, step, whether it is full, number among those of the step. A later epoch is the
# history that holds, whatever steps an earlier one had come to.
_Order = tuple[float, int, bool, int]

_NAME = re.compile(r"(full|delta)-(\d{1,19})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Passed:
    """A checkpoint that is newer than the one that was found, and why it can't be used."""

    path: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Intact:
    """What was found of a run's checkpoints.

    Args:
        reader: of the newest one that can be used; None: there is none.
        passed: those that were passed over, the newest first: to be told.
    """

    reader: CheckpointReader | None
    passed: tuple[Passed, ...] = ()


def newest_intact(
    folder: str | Place,
    *,
    suspects: Collection[Place] = (),
    with_training: bool = False,
    run_id: str | None = None,
    skip: Collection[Place] = (),
    known: dict[Place, CheckpointFiles] | None = None,
) -> Intact:
    """Find the newest checkpoint of which all is there, and all that it lies on.

    Manifests, parents and the sizes of all files are checked. What files hold is checked when it is
    read: where that fails, ask again, with the chain of that one as suspects.

    Args:
        folder: that holds the checkpoints of a run; it need not be there.
        suspects: folders of which every checksum is checked, too, which reads their files once.
        with_training: whether it must say how far the job was.
        run_id: of the run that wrote them, where it is known: another's were copied there.
        skip: those of which the caller knows that they can't be used; nothing is said of them.
        known: what an earlier call has found to be all there, which is not looked at again; what
            this one finds is added, what is gone is dropped.
    """
    known = {} if known is None else known
    before = frozenset(known)
    candidates: list[tuple[_Order, Place]] = []
    passed: list[tuple[_Order, Passed]] = []
    there = checkpoints_in(folder, known=before)
    for gone in before.difference(there):
        del known[gone]
    for path in there:
        name = _NAME.fullmatch(path.name)
        if name is None or path in skip:
            continue
        rest = int(name[2]), name[1] == "full", int(name[3] or 1)
        try:
            if path not in known:
                known[path] = CheckpointFiles(path)
            manifest = known[path].manifest
        except CheckpointError as error:
            passed.append(((math.inf, *rest), Passed(path, str(error))))
            continue
        place = float(manifest.recovery_epoch), *rest
        writer = manifest.job.get("run")
        if run_id is None or writer in (None, run_id):
            candidates.append((place, path))
        else:
            text = f"{path} is of another run ({writer}), of which this is not the place"
            passed.append((place, Passed(path, text)))
    verified: dict[Place, str | None] = dict.fromkeys(suspects)
    for place, path in sorted(candidates, key=lambda found: found[0], reverse=True):
        try:
            reader = CheckpointReader(path, known)
            _check(reader, with_training=with_training, verified=verified)
        except CheckpointError as error:
            passed.append((place, Passed(path, str(error))))
            continue
        # Of those whose manifest can't be read the older ones would not have been taken anyway.
        newer = [each for each in passed if each[0][0] < math.inf or each[0][1] >= place[1]]
        return Intact(reader, _newest_first(newer))
    return Intact(None, _newest_first(passed))


def checkpoints_in(folder: str | Place, known: Collection[Place] = ()) -> list[Place]:
    """Return the finished checkpoints of a folder, by name; none where it is not there.

    Args:
        known: those that were finished before: that they are there is enough.
    """
    place = place_of(folder)
    names = names_in(place)
    unknown = [name for name in names if place / name not in known]
    finished = set(holding(place, unknown, MANIFEST)).union(known)
    return [path for name in names if (path := place / name) in finished]


def unfinished_in(folder: StoredPath) -> list[Place]:
    """Return what in a store is no checkpoint yet, or none any more; by name."""
    names = names_in(folder)
    finished = {path.name for path in holding(folder, names, MANIFEST)}
    return [folder / name for name in names if name not in finished]


def names_in(folder: Place) -> list[str]:
    """Return the names of a folder's checkpoints, be they finished or not, in order."""
    return [path.name for path in folders_in(folder) if _NAME.fullmatch(path.name)]


def _newest_first(passed: list[tuple[_Order, Passed]]) -> tuple[Passed, ...]:
    return tuple(each for _, each in sorted(passed, key=lambda found: found[0], reverse=True))


def _check(
    reader: CheckpointReader, *, with_training: bool, verified: dict[Place, str | None]
) -> None:
    """Look at the files of a checkpoint and of all that it lies on.

    Args:
        verified: of each suspect what is wrong with it, `""`: nothing; None: it was not looked at.
    """
    if with_training and not reader.manifest.training:
        raise CheckpointError(f"{reader.directory} does not say how far the job was")
    for files in reader.chain:
        where = files.directory
        if where not in verified:
            if not files.has_right_sizes:
                files.check_sizes()
            continue
        if verified[where] is None:
            try:
                files.verify()
                verified[where] = ""
            except CheckpointError as error:
                verified[where] = str(error)
        if verified[where]:
            raise CheckpointError(verified[where])
