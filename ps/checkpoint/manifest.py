"""The manifest of a checkpoint, which is written last: what the checkpoint is of, and its files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ps.checkpoint.file_parts import (
    CheckpointError,
    FileEntry,
)
from ps.checkpoint.sealed_json import sealed_text, unsealed
from runtime.durable import write_text
from runtime.typed import decoder_of, field_values

FORMAT = "synchromesh-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Args:
        kind: `full`; deltas come with their own reader.
        step: the global step after which it was taken.
        recovery_epoch: in which it was taken.
        store: tables and dense parameters, as StoreSpec.to_json.
        model: the dense model and the features, for those who predict.
        job: facts about the job that wrote it, for people.
        files: every data file.
        time: clock and counts with which a job goes on from here; empty where they were not kept.
    """

    kind: str
    step: int
    recovery_epoch: int
    store: dict[str, Any]
    model: dict[str, Any]
    job: dict[str, Any]
    files: tuple[FileEntry, ...]
    time: dict[str, Any] = field(default_factory=dict)


def write_manifest(directory: str | Path, manifest: Manifest) -> None:
    """Make the files a checkpoint: check that all are there, then write the manifest at once."""
    root = Path(directory)
    for entry in manifest.files:
        path = root / entry.path
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            raise CheckpointError(
                f"{path} has {found} bytes, the shard that wrote it says {entry.bytes}."
                " run.dir must be one folder that every node sees"
            )
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    write_text(root / MANIFEST, sealed_text(data))


def read_manifest(path: Path) -> Manifest:
    try:
        size = path.stat().st_size
        text = path.read_bytes() if size <= MAX_MANIFEST_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"no checkpoint: {path}: {error.strerror or error}") from error
    if size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, a manifest {MAX_MANIFEST_BYTES} at most")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    try:
        data = unsealed(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    del data["format"]
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this software reads {FORMAT_VERSION}"
        )
    try:
        data["files"] = [_in_order(FileEntry, entry) for entry in data["files"]]
        manifest: Manifest = _manifest_from(_in_order(Manifest, data))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} lacks, or has wrong or unknown entries: {error}") from error
    for entry in manifest.files:
        parts = Path(entry.path).parts
        if Path(entry.path).is_absolute() or ".." in parts or "\0" in entry.path:
            raise CheckpointError(f"{path} names a file outside of its folder: {entry.path!r}")
    return manifest


_manifest_from = decoder_of(Manifest)


def _in_order(kind: type, data: dict[str, Any]) -> list[Any]:
    """Return the fields of a dataclass in order, of which JSON has the names."""
    return field_values(kind(**data))
