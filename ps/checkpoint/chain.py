"""A full checkpoint and the deltas on top of it, each of which names the one that it lies on."""

from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.manifest import MANIFEST
from ps.spec import StoreSpec
from runtime.places import Place

MAX_CHAIN = 1000
"""Most checkpoints in a chain: a full one and the deltas on top of it."""


def open_chain(
    directory: Place, known: dict[Place, CheckpointFiles] | None = None
) -> list[CheckpointFiles]:
    """Open a checkpoint and all that it lies on, the newest first; only manifests are read.

    Args:
        known: those that were opened before, which are not read again; new ones are added.

    Raises:
        CheckpointError: a manifest is missing, or a parent is not the one that a delta was made
            on top of.
    """
    known = {} if known is None else known
    chain = [_opened(directory, known)]
    while (parent := chain[-1].manifest.parent) is not None:
        child = chain[-1]
        if len(chain) == MAX_CHAIN:
            raise CheckpointError(f"{directory} lies on more than {MAX_CHAIN - 1} others")
        try:
            found = _opened(child.directory.parent / parent.name, known)
        except CheckpointError as error:
            raise CheckpointError(
                f"{child.directory} lies on {parent.name}, which can't be used: {error}"
            ) from error
        where = found.directory / MANIFEST
        if found.seal != parent.seal:
            raise CheckpointError(
                f"{where} is not the one that {child.directory.name} was made on top of: its"
                f" checksum is {found.seal}, expected {parent.seal}"
            )
        _check_grew(child, found)
        chain.append(found)
    return chain


def _opened(directory: Place, known: dict[Place, CheckpointFiles]) -> CheckpointFiles:
    files = known.get(directory)
    if files is None:
        files = known[directory] = CheckpointFiles(directory)
    return files


def _check_grew(child: CheckpointFiles, parent: CheckpointFiles) -> None:
    if parent.manifest.step > child.manifest.step:
        raise CheckpointError(
            f"{child.directory / MANIFEST} is of step {child.manifest.step}, what it lies on of"
            f" step {parent.manifest.step}, which is later"
        )
    different = _differences(child.store, parent.store)
    if different:
        raise CheckpointError(
            f"{child.directory / MANIFEST} has other {different[0]} than {parent.directory.name},"
            " which it lies on"
        )


def same_tables(one: StoreSpec, other: StoreSpec) -> bool:
    """Whether checkpoints of two stores may lie on one another."""
    return not _differences(one, other)


def _differences(one: StoreSpec, other: StoreSpec) -> list[str]:
    same = ("tables", "dense_size", "dense_optimizer")
    return [name for name in same if getattr(one, name) != getattr(other, name)]
