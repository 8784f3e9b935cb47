"""Which of a run's checkpoints a job can go on from: the newest that is all there."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.manifest import MANIFEST, read_manifest
from ps.checkpoint.read import CheckpointReader

# Recovery epoch, step, whether it is full, number among those of the step. A later epoch is the
# history that holds, whatever steps an earlier one had come to.
_Place = tuple[float, int, bool, int]

_NAME = re.compile(r"(full|delta)-(\d{1,19})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Passed:
    """A checkpoint that is newer than the one that was found, and why it can't be used."""

    path: Path
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
    folder: str | Path,
    *,
    contents: bool = False,
    with_training: bool = False,
    skip: Collection[Path] = (),
) -> Intact:
    """Find the newest checkpoint of which all is there, and all that it lies on.

    Manifests, parents and the sizes of all files are checked. What files hold is checked when it is
    read: where that fails, ask again with `contents`.

    Args:
        folder: that holds the checkpoints of a run; it need not be there.
        contents: whether every checksum is checked too, which reads the files once.
        with_training: whether it must say how far the job was.
        skip: those of which the caller knows that they can't be used; nothing is said of them.
    """
    candidates: list[tuple[_Place, Path]] = []
    passed: list[tuple[_Place, Passed]] = []
    for path in (manifest.parent for manifest in Path(folder).glob(f"*/{MANIFEST}")):
        name = _NAME.fullmatch(path.name)
        if name is None or path in skip:
            continue
        rest = int(name[2]), name[1] == "full", int(name[3] or 1)
        try:
            epoch = read_manifest(path / MANIFEST)[0].recovery_epoch
        except CheckpointError as error:
            passed.append(((math.inf, *rest), Passed(path, str(error))))
        else:
            candidates.append(((epoch, *rest), path))
    for place, path in sorted(candidates, reverse=True):
        try:
            reader = _checked(path, contents=contents, with_training=with_training)
        except CheckpointError as error:
            passed.append((place, Passed(path, str(error))))
            continue
        # Of those whose manifest can't be read the older ones would not have been taken anyway.
        newer = [each for each in passed if each[0][0] < math.inf or each[0][1] >= place[1]]
        return Intact(reader, _newest_first(newer))
    return Intact(None, _newest_first(passed))


def _newest_first(passed: list[tuple[_Place, Passed]]) -> tuple[Passed, ...]:
    return tuple(each for _, each in sorted(passed, key=lambda found: found[0], reverse=True))


def _checked(path: Path, *, contents: bool, with_training: bool) -> CheckpointReader:
    reader = CheckpointReader(path)
    if with_training and not reader.manifest.training:
        raise CheckpointError(f"{path} does not say how far the job was")
    if contents:
        reader.verify()
    else:
        reader.check_sizes()
    return reader
