"""Arrays in a folder, with a sealed manifest that is written last and says what they are."""

import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ps.checkpoint.sealed_json import SEAL, sealed_text, unsealed
from runtime.durable import make_folder, partial_path, publish, write_text
from serving.errors import ServingError
from serving.rows.quantized import ROWS_AS, RowsAs

FORMAT = "synchromesh-serving"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
_LET_GO_BYTES = 1 << 20
_DTYPES = ("int64", "float32", "uint8")


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """One array in a file, C-contiguous and little-endian; an empty one has no file.

    Args:
        dtype: int64, float32 or uint8.
        shape: of the array.
        sha256: of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class FormManifest:
    """What a folder of the serving form is.

    Args:
        kind: `base`, which has all rows, or `overlay`: what has changed since its base.
        checkpoint: the folder's name of the checkpoint that it was made from.
        seal: the checksum of that checkpoint's manifest.
        step: the global step of it.
        taken: when the job was at that step, in seconds since 1970.
        histories: recovery epochs that it comes from, each with the step at which it began.
        recovery_epoch: of the checkpoint.
        base: of an overlay the name of its base's folder, which stands beside it.
        store: tables and dense parameters, as StoreSpec.to_json.
        model: as in the checkpoint's manifest.
        rows: how vectors are kept, see `serving.rows.quantized`.
        files: the arrays by name.
    """

    kind: Literal["base", "overlay"]
    checkpoint: str
    seal: str
    step: int
    taken: float
    recovery_epoch: int
    histories: tuple[tuple[int, int], ...]
    base: str | None
    store: dict[str, Any]
    model: dict[str, Any]
    rows: RowsAs = "float32"
    files: dict[str, ArrayFile] = field(default_factory=dict)


class FormWriter:
    """Writes arrays to a folder that gets its name when all are there, see `new_form`.

    Args:
        durable: whether what is written is on the disk, too.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder
        self._durable = durable
        self.files: dict[str, ArrayFile] = {}

    def write(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write an array that is in memory."""
        array = np.ascontiguousarray(array)
        data = memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b"")
        if array.size:
            with open(self._path(name), "wb") as file:
                file.write(data)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
        self.files[name] = ArrayFile(
            array.dtype.name, array.shape, hashlib.sha256(data).hexdigest()
        )

    def link(self, name: str, source: Path, entry: ArrayFile) -> None:
        """Have an array that another form has, without a copy where the file system can."""
        try:
            os.link(source, self._path(name))
        except OSError:
            shutil.copyfile(source, self._path(name))
        self.files[name] = entry

    @contextmanager
    def mapped(self, name: str, dtype: str, shape: tuple[int, ...]) -> Iterator["GrowingArray"]:
        """Give an array in a file, zeros to begin with, of which the first rows may be kept."""
        path = self._path(name)
        with open(path, "w+b") as file:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            file.truncate(size)
            if size:
                array = np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
            else:
                array = np.empty(shape, dtype)
            growing = GrowingArray(array, len(array))
            yield growing
            kept = growing.array[: growing.kept]
            data = memoryview(kept.reshape(-1)).cast("B") if kept.size else memoryview(b"")
            digest = hashlib.sha256(data).hexdigest()
            file.truncate(kept.nbytes)
            os.fsync(file.fileno())
        self.files[name] = ArrayFile(dtype, (growing.kept, *shape[1:]), digest)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(slots=True)
class GrowingArray:
    """An array of which the first `kept` rows stay."""

    array: npt.NDArray[Any]
    kept: int


@contextmanager
def new_form(path: Path, *, durable: bool = True) -> Iterator[tuple[FormWriter, Path]]:
    """Give a writer; the folder gets its name when the block has ended and a manifest is there.

    Args:
        durable: whether its arrays are on the disk then. Where they are not, whoever has not seen
            it being made must verify it: the power may have gone since.

    Raises:
        ServingError: the place can't be written.
    """
    partial = partial_path(path)
    try:
        make_folder(partial)
        yield FormWriter(partial, durable=durable), partial
        publish(partial, path)
    except FileExistsError:
        pass  # another process has made the same
    except OSError as error:
        if path.exists():
            return  # likewise, where folders that are not empty can't be replaced
        raise ServingError(
            f"the serving form {path} can't be written: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, manifest: FormManifest) -> None:
    """Seal what was written."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    text, _ = sealed_text(data)
    write_text(folder / MANIFEST, text)


def read_manifest(folder: Path) -> FormManifest:
    """Return what a folder says of itself.

    Raises:
        ServingError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or data.get("format") != FORMAT or SEAL not in data:
            raise ValueError("it is not the manifest of a serving form")
        data = unsealed(data)
        version = data.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"it has format version {version}, expected {FORMAT_VERSION}")
        del data["format"]
        files = {
            str(name): ArrayFile(entry["dtype"], tuple(entry["shape"]), entry["sha256"])
            for name, entry in data.pop("files").items()
        }
        for name, entry in files.items():
            if entry.dtype not in _DTYPES or min(entry.shape, default=0) < 0:
                raise ValueError(f"array {name!r} is {entry.dtype}{list(entry.shape)}")
            if {"", ".", ".."} & set(name.split("/")):
                raise ValueError(f"it names a file outside of its folder: {name!r}")
        if data.get("rows", "float32") not in ROWS_AS:
            raise ValueError(f"it keeps rows as {data['rows']!r}")
        histories = tuple((int(epoch), int(began)) for epoch, began in data.pop("histories"))
        return FormManifest(**data, histories=histories, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ServingError(f"{path} can't be used: {error}") from error


def map_array(folder: Path, name: str, entry: ArrayFile) -> npt.NDArray[Any]:
    """Map an array into memory: pages are shared with every process that maps the file.

    The mapping is private, so that kernels get arrays of the type that they are compiled for;
    nobody writes to it.

    Raises:
        ServingError: the file is missing or has another size.
    """
    if entry.num_bytes == 0:
        return np.empty(entry.shape, entry.dtype)
    path = folder / name
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.num_bytes:
                raise ServingError(
                    f"{path} is damaged: it has {size} bytes, its manifest says {entry.num_bytes}"
                )
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            mapped = mmap.mmap(
                file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
    except OSError as error:
        raise ServingError(f"{path}: {error.strerror or error}") from error
    return np.frombuffer(mapped, entry.dtype).reshape(entry.shape)


def let_go(array: npt.NDArray[Any]) -> None:
    """Take the pages of a mapped array that nobody will read off this process's page tables.

    Else who drops it last does so at once and holds the interpreter meanwhile: 60 ms for a GB.
    Whoever still reads it finds the pages again.
    """
    mapped: Any = array
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, memoryview):
        mapped = mapped.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        for start in range(0, len(mapped), _LET_GO_BYTES):
            mapped.madvise(mmap.MADV_DONTNEED, start, min(_LET_GO_BYTES, len(mapped) - start))


def verify(folder: Path, manifest: FormManifest) -> None:
    """Read every file and hold it against its checksum.

    Raises:
        ServingError: names the first one that is not what was written.
    """
    for name, entry in manifest.files.items():
        if entry.num_bytes == 0:
            continue
        path = folder / name
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ServingError(f"{path}: {error.strerror or error}") from error
        if digest != entry.sha256:
            raise ServingError(f"{path} is damaged: its checksum is not its manifest's")
