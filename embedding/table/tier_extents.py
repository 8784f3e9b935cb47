"""Extents: files of some segments in which rows of a table are written, each once and in order.

No folder lists them, so they are gone when their process ends, however that ends. What is written
of an extent never changes, so whoever wants to keep it gives it a name (`Extent.keep`): a hard link
where the folder is on the same disk. The disk has it back when the table has left it and that name
is removed, in either order.
"""

import contextlib
import errno
import os
import resource
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Digest = Callable[[memoryview], bytes]

_COPIED_AT_ONCE = 8 << 20


class TierError(RuntimeError):
    """Rows on the disk can't be read or written."""


class Extent:
    """One file, and the segments of a table that it is.

    Args:
        number: that no other extent of the table has had.
        descriptor: of the file, which it closes.
        segments: their numbers, in the order of the file.
        place: among the extents that the table has.

    Attributes:
        written: how many segments were given to be written, the first ones.
        writes: that may not have ended.
        digests: of the segments that are written, by what `TierFile.digest` gives.
        holders: who may want to keep it.
        has_name: whether it was kept, and so must never be written again.
    """

    def __init__(self, number: int, descriptor: int, segments: list[int], place: int) -> None:
        self.number, self.descriptor = number, descriptor
        self.segments, self.place = segments, place
        self.written = self.holders = 0
        self.writes: list[Future[bytes]] = []
        self.digests: list[bytes] = []
        self.has_name = False
        self._closes = weakref.finalize(self, os.close, descriptor)

    def renewed(self, number: int) -> "Extent":
        """Return the same file as an extent in which nothing is written."""
        assert self.holders == 0, "somebody wants it as it is"
        self._closes.detach()
        return Extent(number, self.descriptor, self.segments, self.place)

    def finish(self) -> list[bytes]:
        """Wait until all that was given is written; return the digest of each segment.

        Raises:
            OSError: it could not be.
        """
        while self.writes:
            self.digests.append(self.writes[0].result())
            del self.writes[0]
        return self.digests

    @property
    def device(self) -> int:
        """Of the file, as `os.stat` says."""
        return os.fstat(self.descriptor).st_dev

    def keep(self, path: Path, num_bytes: int) -> None:
        """Give it a name, which is on the disk with the first bytes; `path` is free.

        Where it had one that was removed it is copied: a file that had no name any more gets none.

        Raises:
            OSError: it can't be.
        """
        self.has_name = True
        os.fsync(self.descriptor)
        try:
            # By a folder's descriptor, without which a link is made to the link in /proc.
            os.link(f"/proc/self/fd/{self.descriptor}", path, src_dir_fd=0, follow_symlinks=True)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            self._copy(path, num_bytes)

    def _copy(self, path: Path, num_bytes: int) -> None:
        # Opened anew, since direct reads need aligned memory.
        with open(f"/proc/self/fd/{self.descriptor}", "rb") as source, open(path, "xb") as file:
            left = num_bytes
            while left and (piece := source.read(min(left, _COPIED_AT_ONCE))):
                left -= file.write(piece)
            if left:
                raise OSError(errno.EIO, "it ends before what was written to it")
            file.flush()
            os.fsync(file.fileno())


class HeldExtents:
    """Extents that stay as they are until they are released, whatever becomes of their table.

    Args:
        extents: ascending by number.
        segment_bytes, per_segment: bytes and records of each of their segments.

    Attributes:
        first_segments: int64[extents + 1]: how many segments those before have.
    """

    def __init__(self, extents: list[Extent], segment_bytes: int, per_segment: int) -> None:
        self.extents = extents
        self.segment_bytes, self.per_segment = segment_bytes, per_segment
        self.numbers: Int64Array = np.array([each.number for each in extents], np.int64)
        sizes = [0, *(len(each.segments) for each in extents)]
        self.first_segments: Int64Array = np.cumsum(sizes)
        for extent in extents:
            extent.holders += 1

    @property
    def num_records(self) -> int:
        """Records of all of them, whether anything lives of these or not."""
        return int(self.first_segments[-1]) * self.per_segment

    def release(self) -> None:
        """Let go of them, once or more often."""
        extents, self.extents = self.extents, []
        for extent in extents:
            extent.holders -= 1


def opened_extent(path: Path) -> int | None:
    """Open the file of an extent that was kept, past the page cache where that can be.

    None: it can't be read.
    """
    for extra in (getattr(os, "O_DIRECT", 0), 0):
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | extra)
    return None


def check_folder(path: str) -> None:
    """Raise TierError where a folder can't have a file for rows."""
    os.close(unnamed_file(path, "a table"))


def unnamed_file(path: str, name: str) -> int:
    """Open a file that no folder lists, past the page cache where that can be.

    Raises:
        TierError: none can be made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    _allow_more_files()
    for extra in (direct, 0):
        with contextlib.suppress(OSError, AttributeError):
            return os.open(path, flags | os.O_TMPFILE | extra, 0o666)
    try:  # a file system without unnamed files
        file, path_of_file = tempfile.mkstemp(prefix="synchromesh-rows-", dir=path)
        try:
            with contextlib.suppress(OSError):
                file_direct = os.open(path_of_file, flags | direct)
                os.close(file)
                file = file_direct
        finally:
            os.unlink(path_of_file)
        return file
    except OSError as error:
        raise TierError(
            f"{name} can't have a file for rows in {path} ({error.strerror}): tiers.path must be a"
            " folder that is there and can be written, on each server's node"
        ) from error


@cache
def _allow_more_files() -> None:
    """Let this process have as many files open as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
