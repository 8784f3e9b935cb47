"""Checkpoints: files damaged, manifests that say something else, files forged to their checksums.

Damage that nothing was made to fit is found, or changes nothing of what is restored. Where
checksums were made to fit, anything may be restored that is a model: who can write checksums can
write a model. But no error is another than ours.
"""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from fuzzing.frames import STORE, new_shard, steps_of_a_shard
from fuzzing.mutations import changed_value, damaged
from fuzzing.run import Target, WrongResultError
from ps.checkpoint.checksums import TREE_VERSION, digest_of, tree_digest
from ps.checkpoint.cut import CutWriter
from ps.checkpoint.file_parts import FileEntry
from ps.checkpoint.manifest import MANIFEST, CheckpointError, Manifest, Parent, write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables
from ps.checkpoint.sealed_json import SEAL, sealed_text
from ps.checkpoint.write import Compression, write_shard
from ps.messages.records import Freeze
from ps.shard.shard import Shard
from runtime.places import Place
from scheduler.coordinator.clock import ClockState
from scheduler.coordinator.start import Start, start_from, time_to_json
from worker.inference import saved_model

# Path in the tree, and what is in its place; None: the file is gone.
Changes = dict[str, bytes | None]


def content_of(folder: Place) -> str:
    """Return a digest of all that a checkpoint restores."""
    reader = CheckpointReader(folder)
    digest = hashlib.sha256()
    for name, table in sorted(load_tables(reader).items()):
        digest.update(name.encode())
        for kind, columns in (
            ("export", ("keys", "frequency", "version", "vectors", "slots")),
            ("export_counters", ("keys", "frequency", "version")),
            ("export_bloom", ("buckets", "counters")),
        ):
            found = getattr(table, kind)()
            order = np.argsort(getattr(found, columns[0]), kind="stable")
            for column in columns:
                digest.update(np.ascontiguousarray(getattr(found, column)[order]))
    digest.update(reader.dense_rows())
    start = start_from(reader, global_batch=256, init_clock="continue")
    digest.update(repr((reader.manifest.step, start, reader.manifest.model)).encode())
    if reader.manifest.model:
        saved_model(reader)
    reader.verify()
    return digest.hexdigest()


def write_small_checkpoints(folder: Path) -> Path:
    """Write a chain of cuts of a shard with few rows of every kind; return the newest.

    Beside it is a full one of that step, as at the end of a job.
    """
    shard = new_shard()
    parent: Parent | None = None
    compressions: Iterator[Compression] = iter(("none", "lz4", "zstd"))
    for message in steps_of_a_shard():
        shard.handle(message, "fuzzing")
        if not isinstance(message, Freeze):
            continue
        assert shard.frozen is not None, "it was frozen just now"
        path = folder / f"{'delta' if parent else 'full'}-{shard.step:012d}"
        writer = CutWriter(
            path,
            STORE,
            0,
            locked=contextlib.nullcontext,
            changed_only=message.changed_only,
            compression=next(compressions),
        )
        files = writer.write(shard.frozen.tables, shard.frozen.dense)
        shard.thaw()
        seal = write_manifest(path, _manifest_of(shard, files, parent=parent, sorted=False))
        parent = Parent(path.name, seal)
    final = folder / f"full-{shard.step:012d}"
    write_manifest(final, _manifest_of(shard, write_shard(final, shard)))
    return path


def _manifest_of(shard: Shard, files: list[FileEntry], **more: Any) -> Manifest:
    return Manifest(
        kind="full" if more.get("parent") is None else "delta",
        step=shard.step,
        recovery_epoch=0,
        store=STORE.to_json(),
        model={},
        job={"name": "small"},
        files=tuple(files),
        time=time_to_json(Start(), ClockState(), step=shard.step, global_batch=4),
        training={"clock": shard.step},
        **more,
    )


class CheckpointTree:
    """A copy of a checkpoint, and of those beside it, to be damaged.

    Args:
        source: the checkpoint.
        work: an empty folder, best in memory.
    """

    def __init__(self, source: Path, work: Path) -> None:
        self.root = work
        for folder in sorted(source.parent.iterdir()):
            if (folder / MANIFEST).is_file():
                shutil.copytree(folder, work / folder.name)
        self.files = {
            path.relative_to(work).as_posix(): path.read_bytes()
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        manifests = {p.parent.name: json.loads(p.read_text()) for p in work.glob(f"*/{MANIFEST}")}
        parents = {
            name: (found.get("parent") or {}).get("name") for name, found in manifests.items()
        }
        # Of each folder the checkpoint to be restored that it is a part of: the end of its chain.
        self._ends: dict[str, str] = {}
        for end in manifests.keys() - parents.values():
            name: str | None = end
            while name is not None:
                self._ends[name] = end
                name = parents[name]
        self._content = {end: content_of(work / end) for end in set(self._ends.values())}
        # The first versions sealed nothing: what is changed there is as good as forged.
        self._sealed = all(SEAL in manifest for manifest in manifests.values())

    def targets(self) -> dict[str, Target]:
        """Return the kinds of inputs, by name."""
        read = self._read_damaged if self._sealed else self._read_forged
        found = (
            Target("checkpoint-damage", self._damage, read, (CheckpointError,)),
            Target("checkpoint-manifests", self._manifest, read, (CheckpointError,)),
            Target("checkpoint-forgeries", self._forgery, self._read_forged, (CheckpointError,)),
        )
        return {target.name: target for target in found}

    # Inputs -----------------------------------------------------------------------------------

    def _damage(self, rng: Random) -> Changes:
        changes: Changes = {}
        for _ in range(rng.choice((1, 1, 1, 3))):
            name = rng.choice(list(self.files))
            match rng.randrange(12):
                case 0:
                    changes[name] = None
                case 1:
                    changes[name] = self.files[rng.choice(list(self.files))]
                case _:
                    changes[name] = damaged(self.files[name], rng, list(self.files.values()))
        return changes

    def _manifest(self, rng: Random) -> Changes:
        name = self._any_manifest(rng)
        data = changed_value(json.loads(self.files[name]), rng)
        return {name: _json(data).encode()}

    def _forgery(self, rng: Random) -> Changes:
        """A manifest that seals something else, with or without a file that fits it."""
        name = self._any_manifest(rng)
        data = {k: v for k, v in json.loads(self.files[name]).items() if k != SEAL}
        if rng.random() < 0.4:
            data = changed_value(data, rng)
            return {name: _sealed(data)}
        folder = name.removesuffix(MANIFEST)
        entry = rng.choice(data["files"])
        path = entry["path"]
        forged = damaged(self.files[folder + path], rng, list(self.files.values()))
        changes: Changes = {folder + path: forged}
        version = data["format_version"]
        digests = self._fit_parts(folder, path, forged, data["files"], changes, version)
        _fit(entry, forged, version, digests)
        if rng.random() < 0.2:
            entry["rows"] += rng.choice((-1, 1, 1 << 40))
        return {**changes, name: _sealed(data)}

    def _any_manifest(self, rng: Random) -> str:
        return rng.choice([name for name in self.files if name.endswith(MANIFEST)])

    def _fit_parts(
        self,
        folder: str,
        path: str,
        forged: bytes,
        entries: list[Any],
        changes: Changes,
        version: int,
    ) -> list[bytes] | None:
        """Let the list of parts have the checksums of a file that was forged.

        Returns:
            these, and of what follows the last part; of a list of parts None.
        """
        digests, at = [], 0
        for entry in entries:
            name = entry["path"]
            if not name.startswith("parts-") or name == path:
                continue
            parts = pa.ipc.open_file(pa.py_buffer(self.files[folder + name])).read_all()
            rows = parts.to_pylist()
            there = [row for row in rows if row["path"] == path]
            if not there:
                continue
            for row in there:
                end = at + row["num_bytes"]
                digests.append(digest_of(forged[at:end], version))
                row[parts.schema.names[-1]] = digests[-1]
                at = end
            sink = io.BytesIO()
            with pa.ipc.new_file(sink, parts.schema) as writer:
                writer.write_table(pa.Table.from_pylist(rows, schema=parts.schema))
            changes[folder + name] = sink.getvalue()
            _fit(entry, sink.getvalue(), version, None)
        return None if path.startswith("parts-") else [*digests, digest_of(forged[at:], version)]

    # Reading ----------------------------------------------------------------------------------

    def _read_damaged(self, changes: Changes) -> str:
        if self._read_forged(changes) != "the same":
            raise WrongResultError("what was restored is not what was saved")
        return "the same"

    def _read_forged(self, changes: Changes) -> str:
        with self._changed(changes):
            for end in sorted({self._ends[name.split("/")[0]] for name in changes}):
                if content_of(self.root / end) != self._content[end]:
                    return "another model"
        return "the same"

    @contextlib.contextmanager
    def _changed(self, changes: Changes) -> Iterator[None]:
        """Put files into the tree for a block."""
        try:
            for name, data in changes.items():
                _put(self.root / name, data)
            yield
        finally:
            for name in changes:
                _put(self.root / name, self.files[name])


def _put(path: Path, data: bytes | None) -> None:
    """Put a file in place of one, which may still be mapped into memory."""
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def _fit(entry: dict[str, Any], data: bytes, version: int, digests: list[bytes] | None) -> None:
    """Let a manifest have size and checksum of a file; `digests`: of its parts and of the rest."""
    entry["bytes"] = len(data)
    if version < TREE_VERSION:
        entry["sha256"] = digest_of(data, version).hex()
    else:
        whole = digest_of(data, version) if digests is None else tree_digest(digests)
        entry["digest"] = whole.hex()


def _json(data: Any) -> str:
    """Return JSON as others may write it, NaN and infinities too; not of what is nested deep."""
    try:
        return json.dumps(data, allow_nan=True)
    except RecursionError:
        return "[" * 100_000


def _sealed(data: Any) -> bytes:
    if not isinstance(data, dict):
        return _json(data).encode()
    try:
        sealed, _ = sealed_text(data)
    except (RecursionError, ValueError):
        return _json(data).encode()
    return sealed.encode()
