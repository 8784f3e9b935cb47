"""The files of one checkpoint folder, held against its manifest before anything is made of them."""

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import BloomAdmission
from ps.checkpoint.checksums import TREE_VERSION, new_hasher, tree_digest
from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from ps.checkpoint.file_parts import (
    MAX_PARTS_BYTES,
    PARTS,
    FileEntry,
    FilePart,
    check_schema,
    damaged_part,
    naming,
    parts_by_file,
    parts_from,
    parts_schema,
)
from ps.checkpoint.manifest import MANIFEST, read_manifest
from ps.checkpoint.part_reading import MAGIC_BYTES, PartReading
from ps.checkpoint.placed import segments_of
from ps.checkpoint.placed_reading import PlacedReading
from ps.checkpoint.record_batches import MAX_BATCH_BYTES, batches_of
from ps.spec import StoreSpec
from runtime.places import OpenFile, Place, is_file, open_at, sizes_of

_READ_BYTES = 8 << 20  # at once


class CheckpointFiles:
    """What one folder holds, be it a full checkpoint or a delta.

    Args:
        directory: that holds the manifest. Several threads may read.

    Attributes:
        seal: the checksum of the manifest.
        bytes_read: of files so far, without the manifest.
        has_right_sizes: whether `check_sizes` has found all as it should be.

    Raises:
        CheckpointError: there is no manifest, it is not ours, or it lacks files.
    """

    def __init__(self, directory: Place) -> None:
        self.directory = directory
        self.manifest, self.seal = read_manifest(directory / MANIFEST)
        try:
            self.store = StoreSpec.from_json(self.manifest.store)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{directory / MANIFEST} does not describe a store: {error!r}"
            ) from error
        self._check_lists_all_rows()
        self._verified: set[str] = set()
        self.has_right_sizes = False
        self.bytes_read = 0
        self._lock = threading.RLock()

    def _check_lists_all_rows(self) -> None:
        """Every shard writes one file of rows, of a Bloom filter and of tombstones, of a table."""
        files = Counter(entry.path.rsplit("-", 3)[0] for entry in self.manifest.files)
        for table in self.store.tables:
            kinds = ["rows"]
            if isinstance(table.admission, BloomAdmission):
                kinds.append("bloom")
            if self.manifest.kind == "delta":
                kinds.append("removed")
            for kind in kinds:
                found = files[f"tables/{table.name}/{kind}"]
                if found != self.store.num_shards:
                    raise CheckpointError(
                        f"{self.directory / MANIFEST} lists {found} files of {kind} of table"
                        f" {table.name}, but {self.store.num_shards} shards wrote one each"
                    )

        blocks = sum(e.rows for e in self.manifest.files if e.path.startswith("dense/blocks-"))
        if blocks != self.store.num_blocks:
            raise CheckpointError(
                f"{self.directory / MANIFEST} lists {blocks} dense blocks, its dense parameters"
                f" need {self.store.num_blocks}"
            )

    def batches(
        self, prefix: str, schema: pa.Schema, wanted: tuple[int, int], *, without: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Read what some files have of buckets, of dense/ of blocks, [first, end).

        Rows of a table whose values are in extents are among its rows.

        Args:
            without: a file that says what is in extents, and is not to be read.
        """
        with self._unless_removed():
            yield from self._batches(prefix, schema, wanted)
            folder, _, kind = prefix.rpartition("/")
            if kind == "rows-" and folder.startswith("tables/"):
                for reading in self.placed(folder.removeprefix("tables/")):
                    if reading.index.path != without:
                        yield from reading.batches(wanted)

    def has_extents(self, table: str) -> bool:
        """Return whether values of rows of a table are in extents."""
        return f"tables/{table}/placed" in self._by_kind

    def placed(self, table: str) -> Iterator[PlacedReading]:
        """Yield what each shard has of the rows of a table in extents."""
        folder, parts = f"tables/{table}", self._parts or {}
        for index in self._by_kind.get(f"{folder}/placed", ()):
            spec = next(each for each in self.store.tables if each.name == table)
            of_shard = index.path.rpartition("placed")[2].removesuffix(".arrow")
            of_table = [e for e in self.manifest.files if e.path.startswith(f"{folder}/")]
            with naming(self.directory / index.path):
                shard = int(of_shard.split("-")[1])
                segments = segments_of(of_table, parts, f"{of_shard}.bin")
            yield PlacedReading(
                self.directory,
                shard,
                spec,
                index,
                parts.get(index.path, []),
                segments,
                self.manifest.format_version,
                self._has_read,
            )

    @contextlib.contextmanager
    def _unless_removed(self) -> Iterator[None]:
        """Say of what went meanwhile that it was removed, and not that it is damaged."""
        try:
            yield
        except CheckpointError as error:
            with contextlib.suppress(OSError):
                if not is_file(self.directory / MANIFEST):
                    raise CheckpointRemovedError(
                        f"{self.directory} was removed while it was read: a run keeps"
                        " checkpoint.keep full checkpoints, and what lies on them. Read its newest"
                        " one instead"
                    ) from error
            raise

    def _batches(
        self, prefix: str, schema: pa.Schema, wanted: tuple[int, int]
    ) -> Iterator[pa.RecordBatch]:
        entries = self._by_kind.get(prefix.rstrip("-"), ())
        version = self.manifest.format_version
        reading = PartReading(schema, wanted, self.manifest.sorted, version)
        parts = self._parts
        if parts is None:
            for entry in entries:
                yield from self._of_whole(entry, reading)
            return
        files = ((entry, parts.get(entry.path, [])) for entry in entries)
        for part, batch in reading.batches(self.directory, files):
            self._has_read(part.num_bytes)
            if batch.num_rows:
                yield batch

    def num_rows(self, prefix: str, wanted: tuple[int, int]) -> int:
        """Return about how many rows some files have of buckets [first, end)."""
        parts, (first, end) = self._parts, wanted
        found = 0.0
        for entry in self._by_kind.get(prefix.rstrip("-"), ()):
            if parts is None:
                found += entry.rows * (end - first) / NUM_BUCKETS
                continue
            for part in parts.get(entry.path, ()):
                both = min(part.end, end) - max(part.first, first)
                found += part.rows * max(0, both) / (part.end - part.first)
        if prefix.endswith("/rows-"):
            placed = self._by_kind.get(f"{prefix.removesuffix('rows-')}placed", ())
            found += sum(entry.rows for entry in placed) * (end - first) / NUM_BUCKETS
        return round(found)

    @cached_property
    def _by_kind(self) -> dict[str, list[FileEntry]]:
        """The files of all shards together, by how their names begin: there may be thousands."""
        found: dict[str, list[FileEntry]] = defaultdict(list)
        for entry in self.manifest.files:
            found[entry.path.rsplit("-", 3)[0]].append(entry)
        return dict(found)

    def _has_read(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_read += num_bytes

    @property
    def _parts(self) -> dict[str, list[FilePart]] | None:
        """The parts of each file; None where an earlier version wrote them, which listed none."""
        with self._lock:
            return self._listed_parts

    @cached_property
    def _listed_parts(self) -> dict[str, list[FilePart]] | None:
        version = self.manifest.format_version
        lists = [entry for entry in self.manifest.files if entry.path.startswith(PARTS)]
        parts: list[FilePart] = []
        for entry in lists:
            path = self.directory / entry.path
            if entry.bytes > MAX_PARTS_BYTES:
                raise CheckpointError(
                    f"{path} has {entry.bytes} bytes, a list of parts {MAX_PARTS_BYTES} at most"
                )
            with naming(path):
                for batch in self._whole(entry, parts_schema(version), MAX_PARTS_BYTES):
                    parts += parts_from(batch)
        if not lists and version < TREE_VERSION:
            return None
        with naming(self.directory / f"{PARTS}*"):
            return parts_by_file(
                self.manifest.files,
                parts,
                num_blocks=self.store.num_blocks,
                in_order=self.manifest.sorted,
            )

    def _of_whole(self, entry: FileEntry, reading: PartReading) -> Iterator[pa.RecordBatch]:
        with naming(self.directory / entry.path):
            for batch in self._whole(entry, reading.schema):
                batch = reading.rows_within(batch)
                if batch.num_rows:
                    yield batch

    def _whole(
        self, entry: FileEntry, schema: pa.Schema, max_bytes: int = MAX_BATCH_BYTES
    ) -> Iterator[pa.RecordBatch]:
        """Read a file of which no parts are listed, or a list of parts."""
        self._verify(entry)
        path = self.directory / entry.path
        data = _contents(path, entry.bytes)
        with pa.ipc.open_file(data) as reader:
            check_schema(path, reader.schema, schema)
        yield from batches_of(data.slice(MAGIC_BYTES), schema, max_bytes=max_bytes)

    def check_sizes(self) -> None:
        """Check that every file is there and as long as the manifest says; none is read.

        Raises:
            CheckpointError: one is not.
        """
        with self._unless_removed():
            self._check_sizes()
        self.has_right_sizes = True

    def _check_sizes(self) -> None:
        with naming(self.directory):
            sizes = sizes_of(self.directory, [entry.path for entry in self.manifest.files])
        for entry in self.manifest.files:
            path, size = self.directory / entry.path, sizes[entry.path]
            if size is None:
                raise CheckpointError(f"{path}: there is no such file")
            if size != entry.bytes:
                raise CheckpointError(
                    f"{path} is damaged: it has {size} bytes, the manifest says {entry.bytes}"
                )

    def verify(self) -> None:
        """Check size and digest of every file, and that the lists of parts fit the files.

        Raises:
            CheckpointError: a file is missing or is not what was written.
        """
        self.check_sizes()
        with self._unless_removed():
            for entry in self.manifest.files:
                with naming(self.directory / entry.path):
                    self._verify(entry)
            _ = self._parts

    def _verify(self, entry: FileEntry) -> None:
        """Check size and digest once, before a file's first use."""
        if entry.path in self._verified:
            return
        path = self.directory / entry.path
        file = open_at(path)
        try:
            digest = self._digest_of(file, entry) if file.size == entry.bytes else None
            self._has_read(file.size)
        finally:
            file.close()
        if digest != entry.digest:
            raise CheckpointError(f"{path} is damaged: its size or checksum is not the manifest's")
        self._verified.add(entry.path)

    def _digest_of(self, file: OpenFile, entry: FileEntry) -> str:
        """Read a file; return its digest. Parts are held against theirs on the way."""
        version = self.manifest.format_version
        if version < TREE_VERSION or entry.path.startswith(PARTS):
            return _digest_of_bytes(file, 0, entry.bytes, version).hex()
        digests, offset = [], 0
        for part in (self._parts or {}).get(entry.path, ()):
            digests.append(_digest_of_bytes(file, offset, part.num_bytes, version))
            if digests[-1] != part.digest:
                raise damaged_part(self.directory / entry.path, offset, part)
            offset += part.num_bytes
        digests.append(_digest_of_bytes(file, offset, entry.bytes - offset, version))
        return tree_digest(digests).hex()


def _digest_of_bytes(file: OpenFile, offset: int, num_bytes: int, format_version: int) -> bytes:
    """Return the checksum of so many bytes of a file."""
    hasher = new_hasher(format_version)
    end = offset + num_bytes
    while offset < end and (data := file.read(offset, min(end - offset, _READ_BYTES))):
        hasher.update(memoryview(data))
        offset += len(data)
    return hasher.digest()


def _contents(path: Place, num_bytes: int) -> pa.Buffer:
    """Return what is in a file: mapped where it can be, so that no memory is taken."""
    if isinstance(path, Path):
        with pa.memory_map(str(path)) as source:
            return source.read_buffer()
    file = open_at(path)
    try:
        return pa.py_buffer(file.read(0, num_bytes))
    finally:
        file.close()
