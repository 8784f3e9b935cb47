"""Checkpoints as values: what one holds, and whether its files are what was written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import TableSpec
from embedding.arrow import to_arrow
from ps.checkpoint.compact import compact
from ps.checkpoint.compare import Difference, difference
from ps.checkpoint.errors import CheckpointError, UnfitCheckpointError
from ps.checkpoint.manifest import MANIFEST
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.summary import overview_of
from runtime.places import Place, is_file, place_of, time_at
from scheduler.job.errors import nearest
from scheduler.run.directory import (
    RunDirectoryError,
    checkpoints_of,
    latest_checkpoint,
)
from synchromesh.outputs import check_place
from worker.inference import check_model


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as a job wrote it. Nothing of its rows is read before it is asked for.

    Args:
        path: its folder.
        kind: `full`, or `delta`: what has changed since its parent.
        parent: name of the folder that a delta lies on, which stands beside it; None of a full one.
        written: when, in seconds since 1970.
        step: the global step after which it was taken.
        tables: what each table is set to.
        dense_size: how many dense parameters there are.
        num_files: its own data files, without those that it lies on.
        num_bytes: what they take.
    """

    path: Place
    kind: Literal["full", "delta"]
    parent: str | None
    written: float
    step: int
    tables: tuple[TableSpec, ...]
    dense_size: int
    num_files: int
    num_bytes: int
    _reader: CheckpointReader

    def rows(self, table: str, *, slots: bool = False) -> Iterator[pa.RecordBatch]:
        """Read a table's rows part by part.

        Yields key (int64), vector (float32 list of fixed size), where tracked frequency and version
        (int64), and with `slots` the optimizer's.

        Raises:
            CheckpointError: there is no such table, or a file is not what was written.
        """
        specs = {spec.name: spec for spec in self.tables}
        if table not in specs:
            raise UnfitCheckpointError(
                f"{self.path} has no table {table!r}{nearest(table, list(specs))}"
            )
        for entries in self._reader.rows(specs[table]):
            yield to_arrow(entries, specs[table], slots=slots)

    def dense(self) -> npt.NDArray[np.float32]:
        """Return all dense parameters, float32[dense_size], in the model's order."""
        return self._reader.dense_vector()

    @property
    def chain(self) -> list[str]:
        """Names of the folders that it is read from: its own, then those that it lies on."""
        return [files.directory.name for files in self._reader.chain]

    @property
    def chain_files(self) -> int:
        """Data files of the whole chain."""
        return sum(len(files.manifest.files) for files in self._reader.chain)

    @property
    def chain_bytes(self) -> int:
        """What the data files of the whole chain take."""
        return self._reader.num_bytes

    def verify(self) -> None:
        """Read every file, also of what it lies on, and hold it against size and sha256.

        Tables and dense parameters must be those of the model that the manifest names.

        Raises:
            CheckpointError: a file is missing or is not what was written, or the model is another.
        """
        self._reader.verify()
        check_model(self._reader)


def open_checkpoint(path: str | Place) -> Checkpoint:
    """Open a checkpoint, or the newest one of a run directory or of a folder of them.

    Raises:
        CheckpointError, RunDirectoryError: there is none, or its manifest can't be used.
    """
    found = latest_checkpoint(path)
    reader = CheckpointReader(found)
    manifest = reader.manifest
    return Checkpoint(
        path=found,
        kind=manifest.kind,
        parent=None if manifest.parent is None else manifest.parent.name,
        written=time_at(found / MANIFEST),
        step=manifest.step,
        tables=reader.store.tables,
        dense_size=reader.store.dense_size,
        num_files=len(manifest.files),
        num_bytes=sum(file.bytes for file in manifest.files),
        _reader=reader,
    )


def list_checkpoints(path: str | Place, damaged: Callable[[str], None]) -> list[Checkpoint]:
    """Return the checkpoints of a run directory, the oldest first, or the one at a path.

    Args:
        damaged: is told of each one whose manifest, or what it lies on, can't be used.

    Raises:
        RunDirectoryError: there is none.
    """
    found = [place_of(path)]
    if not is_file(found[0] / MANIFEST):
        found = checkpoints_of(path)
        if not found:
            raise RunDirectoryError(f"{path} has no finished checkpoint")
    opened = []
    for each in found:
        try:
            opened.append(open_checkpoint(each))
        except (CheckpointError, OSError) as error:
            damaged(str(error))
    return opened


def as_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what people and programs are shown of a checkpoint."""
    return {
        "checkpoint": str(checkpoint.path),
        "kind": checkpoint.kind,
        "step": checkpoint.step,
        "parent": checkpoint.parent,
        "written": checkpoint.written,
        "tables": [spec.name for spec in checkpoint.tables],
        "dense_size": checkpoint.dense_size,
        "files": checkpoint.num_files,
        "bytes": checkpoint.num_bytes,
    }


def details_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all that is known of a checkpoint; of a delta the keys of its chain are counted.

    Raises:
        CheckpointError: a file of a delta's chain is missing or damaged.
    """
    reader = checkpoint._reader
    manifest = reader.manifest
    overviews = [overview_of(reader, spec) for spec in checkpoint.tables]
    return {
        **as_json(checkpoint),
        "recovery_epoch": manifest.recovery_epoch,
        "seal": reader.seal,
        "sorted": manifest.sorted,
        "can_be_gone_on_from": bool(manifest.training),
        "job": manifest.job,
        "chain": [
            {
                "checkpoint": files.directory.name,
                "kind": files.manifest.kind,
                "step": files.manifest.step,
                "files": len(files.manifest.files),
                "bytes": sum(entry.bytes for entry in files.manifest.files),
            }
            for files in reader.chain
        ],
        "tables": {
            each.spec.name: {
                "dim": each.spec.dim,
                "optimizer": each.spec.optimizer.type,
                "rows": each.rows,
                "unadmitted": each.unadmitted,
                "file_bytes": each.file_bytes,
                "memory_bytes": each.memory_bytes,
            }
            for each in overviews
        },
    }


def compare(before: str | Place, after: str | Place) -> Difference:
    """Say how two checkpoints, or the newest ones of run directories, differ.

    Raises:
        CheckpointError, RunDirectoryError: there is none, or a file is not what was written.
    """
    first, second = open_checkpoint(before), open_checkpoint(after)
    return difference(first._reader, second._reader)


def compact_checkpoint(path: str | Place, out: str | Place | None = None) -> tuple[Place, str]:
    """Write a checkpoint with all that it lies on as a full one; return its folder and digest.

    Args:
        out: the new folder; None: `full-STEP` beside it. Where the name is taken it gets a number.

    Raises:
        CheckpointError, RunDirectoryError: there is none, or a file is not what was written.
        OutputError: nothing can be written at the place.
        OSError: it could not be written; nothing is left of it.
    """
    found = open_checkpoint(path)
    place = found.path.with_name(f"full-{found.step:012d}") if out is None else place_of(out)
    if isinstance(place, Path):
        check_place(place)
    return compact(found._reader, place)
