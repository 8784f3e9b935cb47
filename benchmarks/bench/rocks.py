"""RocksDB as a store of rows: MultiGet to pull, MultiGet and one batch of writes to apply."""

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding import TableEntries, TableSpec, rule_for, step_scalars

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class RocksTable:
    """Rows of vector and slots, in one file store with a budget of memory.

    Args:
        folder: where its files go.
        spec: of the rows.
        budget: bytes of its block cache and write buffers.
    """

    def __init__(self, folder: str, spec: TableSpec, budget: int) -> None:
        rocksdict = import_module("rocksdict")  # of those who have it

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.increase_parallelism(2)
        options.set_use_direct_reads(True)
        options.set_use_direct_io_for_flush_and_compaction(True)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_write_buffer_size(max(budget // 8, 1 << 16))
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(budget * 3 // 4))
        blocks.set_block_size(4096)
        blocks.set_bloom_filter(10, False)
        options.set_block_based_table_factory(blocks)
        self._rocks = rocksdict
        self._store = rocksdict.Rdict(folder, options)
        write = rocksdict.WriteOptions()
        write.disable_wal = True  # rows of a tier need not outlive the process
        self._store.set_write_options(write)
        read = rocksdict.ReadOptions()
        read.set_async_io(True)
        self._store.set_read_options(read)
        self._spec, self._rule = spec, rule_for(spec.optimizer, sparse=True)
        self._width = self._rule.row_width(spec.dim)

    def import_rows(self, entries: TableEntries) -> None:
        """Write rows."""
        self._write(entries.keys, np.hstack([entries.vectors, entries.slots]))

    def pull(self, keys: Int64Array) -> Float32Array:
        """Return the vectors of keys."""
        return self._read(keys)[:, : self._spec.dim]

    def apply(self, keys: Int64Array, step: int) -> None:
        """Update rows by the optimizer's own kernel."""
        rows = self._read(keys).copy()
        gradients = np.full((keys.size, self._spec.dim), 0.01, np.float32)
        scalars = step_scalars(self._spec.optimizer, learning_rate=0.01, step=step)
        self._rule.update(rows, np.arange(keys.size), gradients, np.float32(0.5), scalars)
        self._write(keys, rows)

    def _read(self, keys: Int64Array) -> Float32Array:
        found: list[Any] = self._store.get(_bytes(keys, 8))
        return np.frombuffer(b"".join(found), np.float32).reshape(keys.size, self._width)

    def _write(self, keys: Int64Array, rows: Float32Array) -> None:
        batch = self._rocks.WriteBatch(raw_mode=True)
        for key, row in zip(_bytes(keys, 8), _bytes(rows, 4 * self._width), strict=True):
            batch.put(key, row)
        self._store.write(batch)


def _bytes(array: npt.NDArray[Any], size: int) -> list[bytes]:
    data = np.ascontiguousarray(array).tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]
