"""The manifest of a checkpoint, which is written last: what the checkpoint is of, and its files."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ps.checkpoint.checksums import TREE_VERSION
from ps.checkpoint.file_parts import CheckpointError, FileEntry
from ps.checkpoint.placed import is_extent
from ps.checkpoint.sealed_json import SEAL, seal_of, sealed_text, unsealed
from runtime.places import NoFileError, Place, open_at, place_of, sizes_of, write_text_at
from runtime.typed import decoder_of, field_values

FORMAT = "synchromesh-checkpoint"
FORMAT_VERSION = 3
EXTENTS_VERSION = 4
"""Of a checkpoint that has extents, which is as one of version 3 beside them."""

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Parent:
    """The checkpoint that a delta lies on.

    Args:
        name: of its folder, which stands beside the delta's.
        seal: the checksum that its manifest says of itself.
    """

    name: str
    seal: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Args:
        kind: `full`, or `delta`: what has changed since its parent.
        step: the global step after which it was taken.
        recovery_epoch: in which it was taken.
        store: tables and dense parameters, as StoreSpec.to_json.
        model: the dense model and the features, for those who predict.
        job: facts about the job that wrote it, for people.
        files: every data file.
        time: clock and counts with which a job goes on from here; empty where they were not kept.
        parent: of a delta; None of a full one.
        training: how far the job was, for itself to go on; empty where that was not kept.
        sorted: whether rows lie by bucket and key; of a cut they lie by groups of buckets only.
        format_version: of its files, which says what their checksums are; what is written has the
            lowest that says what is in it.
    """

    kind: Literal["full", "delta"]
    step: int
    recovery_epoch: int
    store: dict[str, Any]
    model: dict[str, Any]
    job: dict[str, Any]
    files: tuple[FileEntry, ...]
    time: dict[str, Any] = field(default_factory=dict)
    parent: Parent | None = None
    training: dict[str, Any] = field(default_factory=dict)
    sorted: bool = True
    format_version: int = FORMAT_VERSION


def write_manifest(directory: str | Place, manifest: Manifest) -> str:
    """Make the files a checkpoint: check that all are there, then write the manifest at once.

    In a store the checkpoint is there then.

    Returns:
        its seal, which a delta on top of it names.
    """
    root = place_of(directory)
    sizes = sizes_of(root, [entry.path for entry in manifest.files])
    for entry in manifest.files:
        found = sizes[entry.path]
        if found != entry.bytes:
            raise CheckpointError(
                f"{root / entry.path} has {found} bytes, the shard that wrote it says"
                f" {entry.bytes}. run.dir, or checkpoint.path, must be one place that every node"
                " sees"
            )
    has_extents = any(is_extent(entry.path) for entry in manifest.files)
    version = EXTENTS_VERSION if has_extents else FORMAT_VERSION
    data = {"format": FORMAT, **asdict(manifest), "format_version": version}
    text, seal = sealed_text(data)
    write_text_at(root / MANIFEST, text)
    return seal


def read_manifest(path: Place) -> tuple[Manifest, str]:
    """Return a manifest and its seal; that of one from before manifests had one is computed.

    Nothing that it says of files was held against them.

    Raises:
        CheckpointError: there is none, or it is not one that this software reads.
    """
    return parse_manifest(_bytes_of(path), path)


def parse_manifest(text: bytes, path: Place) -> tuple[Manifest, str]:
    """Return a manifest and its seal, as `read_manifest` does, of bytes.

    Args:
        path: what errors say of where it is.

    Raises:
        CheckpointError: it is not one that this software reads.
    """
    data = _mapping_of(text, path)
    if data.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    is_sealed = SEAL in data
    try:
        data = unsealed(data)
        seal = seal_of(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    del data["format"]
    version = data.get("format_version")
    if type(version) is not int or not 1 <= version <= EXTENTS_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this software reads 1 to {EXTENTS_VERSION}"
        )
    if version != 1 and not is_sealed:
        raise CheckpointError(f"{path} is damaged: it lacks its checksum")
    try:
        data["files"] = [_in_order(FileEntry, _renamed(e, version)) for e in data["files"]]
        if data.get("parent") is not None:
            data["parent"] = _in_order(Parent, data["parent"])
        manifest: Manifest = _manifest_from(_in_order(Manifest, data))
        _check_files(manifest.files)
        _check_numbers(manifest)
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{path} {error}") from error
        raise CheckpointError(f"{path} lacks, or has wrong or unknown entries: {error}") from error
    return manifest, seal


def _bytes_of(path: Place) -> bytes:
    try:
        file = open_at(path)
        size = file.size
        try:
            text = file.read(0, size) if size <= MAX_MANIFEST_BYTES else b""
        finally:
            file.close()
    except NoFileError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"no checkpoint: {path}: {error.strerror or error}") from error
    if size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, a manifest {MAX_MANIFEST_BYTES} at most")
    return text


def _mapping_of(text: bytes, path: Place) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    return data


_manifest_from = decoder_of(Manifest)


def _in_order(kind: type, data: dict[str, Any]) -> list[Any]:
    """Return the fields of a dataclass in order, of which JSON has the names."""
    return field_values(kind(**data))


def _renamed(entry: dict[str, Any], version: int) -> dict[str, Any]:
    """Return an entry of a file as it is called today."""
    if version >= TREE_VERSION:
        return entry
    if not isinstance(entry, dict) or "digest" in entry:
        raise TypeError(f"file {entry!r:.200}")
    return {"digest" if name == "sha256" else name: value for name, value in entry.items()}


def _check_files(files: Iterable[FileEntry]) -> None:
    """Hold what is said of files against reason, before one of them is opened."""
    seen: set[str] = set()
    for entry in files:
        parts = entry.path.split("/")
        if "\\" in entry.path or "\0" in entry.path or {"", ".", ".."} & set(parts):
            raise CheckpointError(f"names a file outside of its folder: {entry.path!r}")
        if entry.path in seen or entry.path == MANIFEST:
            raise ValueError(f"file {entry.path} may be listed once, and no manifest")
        seen.add(entry.path)
        if min(entry.bytes, entry.rows) < 0 or not _DIGEST.fullmatch(entry.digest):
            raise ValueError(
                f"file {entry.path} of {entry.bytes} bytes, {entry.rows} rows and digest"
                f" {entry.digest[:80]!r}"
            )


def _check_numbers(manifest: Manifest) -> None:
    if min(manifest.step, manifest.recovery_epoch) < 0:
        raise ValueError(f"step {manifest.step}, recovery_epoch {manifest.recovery_epoch}")
    parent = manifest.parent
    if (manifest.kind == "delta") != (parent is not None):
        raise ValueError(f"a {manifest.kind} checkpoint with parent {parent}")
    if parent is None:
        return
    if not _FOLDER.fullmatch(parent.name):
        raise CheckpointError(f"names a parent that is no folder beside it: {parent.name[:300]!r}")
    if not _DIGEST.fullmatch(parent.seal):
        raise ValueError(f"a parent with the seal {parent.seal[:80]!r}")
