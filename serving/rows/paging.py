"""Vectors of which the hot ones are in memory and all are in files, that are read by blocks.

A row is known by a number that no other row of this process ever has: the number of its file, given
when that is opened, and its own. Rows that are asked for stay, in sets of eight; of a set that one
leaves which was asked for the fewest times lately.
"""

import itertools
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.disk_reads import aligned, read_blocks
from embedding.kernels.mixing import mix64
from embedding.kernels.prefetch import AHEAD, prefetch_row
from serving.errors import ServingError

Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]

NONE = -1
"""In place of a row's number: there is no row."""

MIN_MEMORY_BYTES = 1 << 20

_WAYS = 8
_MOST_HEAT = 15
_ROW_BITS = 32
_BLOCK_WORDS = 1024
_BLOCK_BITS = 40  # of a block's number in its file
_KEPT_BLOCKS = 256  # of a buffer that is used again
_numbers = itertools.count(1)


class VectorFile:
    """The vectors of one layer in a file.

    Args:
        path: of the file.
        rows, width: of its array, float32[rows, width].

    Raises:
        ServingError: it can't be opened.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.width = width
        self.first = next(_numbers) << _ROW_BITS
        self.path = path
        self.descriptor = -1
        if rows == 0:
            return
        try:
            self.descriptor = _opened(path)
        except OSError as error:
            raise ServingError(f"{path}: {error.strerror or error}") from error
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True, slots=True)
class RowCacheFigures:
    """What a cache holds, and where rows were that were asked for.

    Args:
        memory_bytes: of vectors, and of what finds them, at most.
        hits, reads: rows that were in memory, and that were read from their files.
    """

    memory_bytes: int = 0
    hits: int = 0
    reads: int = 0

    def __add__(self, other: "RowCacheFigures") -> "RowCacheFigures":
        return RowCacheFigures(
            self.memory_bytes + other.memory_bytes,
            self.hits + other.hits,
            self.reads + other.reads,
        )


class _Arrays(NamedTuple):
    """What kernels take of a cache.

    Args:
        tags: int64[sets, 8], numbers of rows plus one; 0: none.
        heats: uint8[sets, 8], how often each was asked for lately.
        hands: uint8[sets], whose heat falls next.
        words: float32[sets * 8, width of the widest].
    """

    tags: Int64s
    heats: UInt8s
    hands: UInt8s
    words: Float32s


class RowCache:
    """The vectors of all files of a process that are in memory.

    Threads may read side by side.

    Args:
        memory_bytes: of vectors in memory, with what finds them.
        width: float32 places of the widest vector.

    Raises:
        ServingError: there is no room for a few vectors.
    """

    def __init__(self, memory_bytes: int, width: int) -> None:
        sets = memory_bytes // (_WAYS * (4 * width + 9) + 1)
        if sets == 0:
            raise ServingError(
                f"{memory_bytes:,} bytes of memory have no room for {_WAYS} vectors of"
                f" {4 * width:,} bytes"
            )
        self.width = width
        self._arrays = _Arrays(
            np.zeros((sets, _WAYS), np.int64),
            np.zeros((sets, _WAYS), np.uint8),
            np.zeros(sets, np.uint8),
            np.zeros((sets * _WAYS, width), np.float32),
        )
        self._buffers = _Buffers()
        self._guard = threading.Lock()
        self._hits = self._reads = 0

    def read(self, rows: Int64s, of_files: Int64s, files: "FileTable") -> Float32s:
        """Return what is stored of rows: float32[n, width of the widest], of no row anything.

        Args:
            rows: int64[n], each the `first` of its file and its number there; NONE: none.
            of_files: int64[n], the places of their files in the table.

        Raises:
            ServingError: a file can't be read.
        """
        words = np.empty((rows.size, self.width), np.float32)
        missing = np.empty(rows.size, np.int64)
        with self._guard:
            count, hits = _look(self._arrays, rows, words, missing)
            self._hits += hits
            self._reads += count
        if count:
            missing = missing[:count]
            self._fetch(rows[missing], of_files[missing], files, words, missing)
            with self._guard:
                _keep(self._arrays, rows, words, missing)
        return words

    def _fetch(
        self, rows: Int64s, of_files: Int64s, files: "FileTable", words: Float32s, into: Int64s
    ) -> None:
        """Read rows to places of `words`, each block once and as many at once as a queue holds."""
        blocks = np.unique(_blocks_of(rows, of_files, files.widths))
        buffer = self._buffers.of(blocks.size)
        numbers = blocks & ((1 << _BLOCK_BITS) - 1)
        places = blocks >> _BLOCK_BITS
        least = np.minimum(files.sizes[places] - numbers * 4 * _BLOCK_WORDS, 4 * _BLOCK_WORDS)
        try:
            read_blocks(files.descriptors[places], numbers, least, buffer)
        except OSError as error:
            raise ServingError(
                f"vectors below {files.folder} can't be read: {error.strerror or error}"
            ) from error
        _take(rows, of_files, files.widths, blocks, buffer.reshape(-1), words, into)

    def figures(self) -> RowCacheFigures:
        """Return what it holds, and where rows were."""
        with self._guard:
            return RowCacheFigures(
                sum(array.nbytes for array in self._arrays), self._hits, self._reads
            )


class _Buffers(threading.local):
    """What each thread reads into."""

    def __init__(self) -> None:
        self._kept = aligned(_KEPT_BLOCKS * _BLOCK_WORDS).reshape(-1, _BLOCK_WORDS)

    def of(self, blocks: int) -> Float32s:
        if blocks <= _KEPT_BLOCKS:
            return self._kept[:blocks]
        return aligned(blocks * _BLOCK_WORDS).reshape(-1, _BLOCK_WORDS)


def check_memory(memory_bytes: int) -> None:
    """Raise ServingError where a process that computes would have too little for vectors."""
    if memory_bytes < MIN_MEMORY_BYTES:
        raise ServingError(
            f"{memory_bytes:,} bytes of memory for vectors of each process that computes are too"
            f" few: at least {MIN_MEMORY_BYTES:,} are needed. Give more (--memory, such as 2GB, is"
            " shared by the sessions), or fewer sessions"
        )


class FileTable:
    """Files by their places, for kernels; they stay open as long as it is there."""

    def __init__(self, files: list[VectorFile]) -> None:
        self._files = files
        self.folder = files[0].path.parent if files else Path()
        self.descriptors: Int64s = np.array([each.descriptor for each in files], np.int64)
        self.widths: Int64s = np.array([each.width for each in files], np.int64)
        self.sizes: Int64s = np.array(
            [os.fstat(each.descriptor).st_size if each.descriptor >= 0 else 0 for each in files],
            np.int64,
        )


def _opened(path: Path) -> int:
    """Open a file, past the page cache where that can be."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, flags)


@njit(cache=True, nogil=True, inline="always")
def _set_of(arrays: _Arrays, row: np.int64) -> np.int64:
    return np.int64(mix64(np.uint64(row)) % np.uint64(arrays.tags.shape[0]))


@njit(cache=True, nogil=True)
def _look(arrays: _Arrays, rows: Int64s, words: Float32s, missing: Int64s) -> tuple[int, int]:
    """Copy what is in memory, list what is not; return how many are not, and how many are."""
    n, width = words.shape
    sets, found = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        sets[i] = _set_of(arrays, rows[i])
    count, hits = 0, 0
    for i in range(n):
        ahead = sets[min(i + AHEAD, n - 1)]
        prefetch_row(arrays.tags, ahead, _WAYS)
        place, found[i] = sets[i], np.int64(NONE)
        if rows[i] == NONE:
            continue
        for way in range(_WAYS):
            if arrays.tags[place, way] == rows[i] + 1:
                found[i] = place * _WAYS + way
                arrays.heats[place, way] = min(arrays.heats[place, way] + 1, _MOST_HEAT)
        if found[i] == NONE:
            missing[count] = i
            count += 1
    for i in range(n):
        prefetch_row(arrays.words, max(found[min(i + AHEAD, n - 1)], 0), width)
        if found[i] >= 0:
            hits += 1
            for c in range(width):
                words[i, c] = arrays.words[found[i], c]
    return count, hits


@njit(cache=True, nogil=True)
def _keep(arrays: _Arrays, rows: Int64s, words: Float32s, which: Int64s) -> None:
    """Have rows in memory that were read."""
    for i in which:
        place = _set_of(arrays, rows[i])
        hand = arrays.hands[place]
        arrays.hands[place] = (hand + 1) % _WAYS
        if arrays.heats[place, hand] > 0:
            arrays.heats[place, hand] -= 1
        coldest, is_there = 0, False
        for way in range(_WAYS):
            is_there |= arrays.tags[place, way] == rows[i] + 1
            if arrays.heats[place, way] < arrays.heats[place, coldest]:
                coldest = way
        if is_there:
            continue  # it came twice
        arrays.tags[place, coldest] = rows[i] + 1
        arrays.heats[place, coldest] = 1
        for c in range(words.shape[1]):
            arrays.words[place * _WAYS + coldest, c] = words[i, c]


@njit(cache=True, nogil=True, inline="always")
def _span(row: np.int64, width: np.int64) -> tuple[np.int64, np.int64, np.int64]:
    """Return the first word of a row in its file, and its first and last block."""
    start = (row & ((np.int64(1) << _ROW_BITS) - 1)) * width
    return start, start // _BLOCK_WORDS, (start + width - 1) // _BLOCK_WORDS


@njit(cache=True, nogil=True)
def _blocks_of(rows: Int64s, of_files: Int64s, widths: Int64s) -> Int64s:
    """Return the blocks in which rows are, with the places of their files."""
    count = 0
    for i in range(rows.size):
        _, first, last = _span(rows[i], widths[of_files[i]])
        count += last - first + 1
    blocks = np.empty(count, np.int64)
    count = 0
    for i in range(rows.size):
        _, first, last = _span(rows[i], widths[of_files[i]])
        for block in range(first, last + 1):
            blocks[count] = (of_files[i] << _BLOCK_BITS) + block
            count += 1
    return blocks


@njit(cache=True, nogil=True)
def _take(
    rows: Int64s,
    of_files: Int64s,
    widths: Int64s,
    blocks: Int64s,
    read: Float32s,
    words: Float32s,
    into: Int64s,
) -> None:
    """Copy rows out of blocks, ascending, that were read one after another."""
    for i in range(rows.size):
        width = widths[of_files[i]]
        start, first, _ = _span(rows[i], width)
        at = np.searchsorted(blocks, (of_files[i] << _BLOCK_BITS) + first)
        # Blocks of one row follow one another, so its words do.
        begin = at * _BLOCK_WORDS + start - first * _BLOCK_WORDS
        for c in range(width):
            words[into[i], c] = read[begin + c]
