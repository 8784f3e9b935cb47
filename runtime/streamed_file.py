"""A large file that another thread writes while its next bytes are made."""

import contextlib
import errno
import fcntl
import mmap
import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 4 << 20  # whole pages, as writes past the page cache need
_BLOCKS = 2
_DIRECT = getattr(os, "O_DIRECT", 0)  # not every system has it


class StreamedFile:
    """Writes an empty file from its start to its end; all is written once the block has ended.

    What comes is collected in blocks of memory, and a thread writes those that are full: the caller
    waits only where the disk is slower than it is. They go past the page cache where system and
    file system can do that: most of what a write takes of CPU is the copy that the cache keeps,
    which pushes other files out, and nobody reads a checkpoint soon. The block that is not full at
    the end is written as any other file is. An error may come with a later call.

    Args:
        file: of which nobody else writes; the caller closes it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = file.fileno()
        self._is_direct = _DIRECT != 0 and self._set_direct(wanted=True)
        self._written = 0
        self._block = _new_block()
        self._filled = 0
        self._num_blocks = 1
        self._under_way: deque[Future[npt.NDArray[np.uint8]]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def write(self, data: Any) -> None:
        """Take bytes; they are copied."""
        source = np.frombuffer(data, np.uint8)
        start = 0
        while start < source.size:
            count = min(source.size - start, BLOCK_BYTES - self._filled)
            # NumPy lets others run while it copies.
            self._block[self._filled : self._filled + count] = source[start : start + count]
            self._filled += count
            start += count
            if self._filled == BLOCK_BYTES:
                self._hand_over()

    def __enter__(self) -> "StreamedFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                while self._under_way:
                    self._under_way.popleft().result()
                self._leave_direct()
                self._write_all(self._block[: self._filled])
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._under_way.append(self._thread.submit(self._write_all, self._block))
        self._filled = 0
        if self._num_blocks < _BLOCKS:
            self._block = _new_block()
            self._num_blocks += 1
        else:
            self._block = self._under_way.popleft().result()

    def _write_all(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        left = memoryview(block)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._leave_direct()
        if not self._is_direct and sys.platform == "linux":
            with contextlib.suppress(OSError):  # it is advice; some file systems take none
                os.posix_fadvise(
                    self._descriptor, self._written, block.nbytes, os.POSIX_FADV_DONTNEED
                )
        self._written += block.nbytes
        return block

    def _leave_direct(self) -> None:
        """Write through the page cache from here on: any length, anywhere."""
        if self._is_direct:
            self._is_direct = False
            self._set_direct(wanted=False)

    def _set_direct(self, *, wanted: bool) -> bool:
        """Return whether the file system does as it is told."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | _DIRECT * wanted)
        except OSError:
            return False
        return True


def _new_block() -> npt.NDArray[np.uint8]:
    """Return memory that begins with a page; a page of it is taken when it is first written."""
    return np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), np.uint8)
