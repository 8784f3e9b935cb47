"""The same DLRM in torch, in one process: what training costs without servers and dynamic rows.

It reads the same batches through our reader, one batch ahead in a thread, and computes on as many
threads as there are cores. Ids are taken modulo the rows of their table, which are allocated
before: as many as the feature has values, but no more than a limit.

`BagTables` is the usual code: an `nn.EmbeddingBag` for each table, and `optim.Adagrad` on its
sparse gradients. `MergedTables` has one weight for all and a sparse Adagrad by hand.
"""

import queue
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from worker.data.batch import Batch
from worker.data.reading import Reader
from worker.datasets.planted import CARDINALITIES
from worker.metrics import StreamingAuc

BOTTOM, TOP, DIM = (13, 512, 256, 64, 16), (512, 256, 1), 16
_AHEAD = 2


class BagTables:
    """An embedding bag a feature."""

    def __init__(self, torch: Any, sizes: list[int], *, lr: float, accumulator: float) -> None:
        self._torch = torch
        self._sizes = np.array(sizes)
        self._bags = [torch.nn.EmbeddingBag(size, DIM, mode="sum", sparse=True) for size in sizes]
        for bag in self._bags:
            torch.nn.init.uniform_(bag.weight, -0.01, 0.01)
        weights = [bag.weight for bag in self._bags]
        self._optimizer = torch.optim.Adagrad(weights, lr=lr, initial_accumulator_value=accumulator)

    def forward(self, ids: Any) -> Any:
        """Return the pooled vectors, [n, tables, dim]."""
        return self._torch.stack(
            [bag(ids[:, i].unsqueeze(1)) for i, bag in enumerate(self._bags)], 1
        )

    def numbers(self, keys: np.ndarray) -> np.ndarray:
        """Return row numbers, int64[n, tables], of keys of the same shape."""
        return keys % self._sizes

    def step(self) -> None:
        """Apply the gradients of the last backward pass."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class MergedTables:
    """One weight for all features, and Adagrad on the distinct rows of a batch."""

    def __init__(self, torch: Any, sizes: list[int], *, lr: float, accumulator: float) -> None:
        self._torch, self._lr = torch, lr
        self._sizes = np.array(sizes)
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._weight = torch.empty(sum(sizes), DIM).uniform_(-0.01, 0.01)
        self._accumulators = torch.full((sum(sizes), DIM), accumulator)

    def forward(self, ids: Any) -> Any:
        """Return the vectors, [n, tables, dim]."""
        self._ids = ids.flatten()
        self._rows = self._weight[self._ids].requires_grad_()
        return self._rows.view(*ids.shape, DIM)

    def numbers(self, keys: np.ndarray) -> np.ndarray:
        """Return row numbers, int64[n, tables], of keys of the same shape."""
        return keys % self._sizes + self._starts

    def step(self) -> None:
        """Apply the gradients of the last backward pass."""
        torch = self._torch
        with torch.no_grad():
            distinct, places = torch.unique(self._ids, return_inverse=True)
            gradients = torch.zeros(len(distinct), DIM).index_add_(0, places, self._rows.grad)
            accumulators = self._accumulators[distinct].addcmul_(gradients, gradients)
            self._accumulators[distinct] = accumulators
            rows = self._weight[distinct].addcdiv_(gradients, accumulators.sqrt(), value=-self._lr)
            self._weight[distinct] = rows


class TorchDlrm:
    """Trains and evaluates; both tables have the same dense part around them."""

    def __init__(
        self, torch: Any, tables: BagTables | MergedTables, *, lr: float, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._torch, self._tables = torch, tables
        pairs = (len(CARDINALITIES) + 1) * len(CARDINALITIES) // 2
        self._bottom = _layers(torch, BOTTOM, relu_last=True)
        self._top = _layers(torch, (DIM + pairs, *TOP), relu_last=False)
        self._lower = torch.tril_indices(len(CARDINALITIES) + 1, len(CARDINALITIES) + 1, -1)
        self._loss = torch.nn.BCEWithLogitsLoss()
        dense = [*self._bottom.parameters(), *self._top.parameters()]
        self._optimizer = torch.optim.Adam(dense, lr=lr)

    def train(self, reader: Reader, batches: int) -> float:
        """Train so many batches from their files to the last update; return samples a second."""
        samples = 0
        began = time.perf_counter()
        for batch, ids in self._read(reader, batches):
            self._optimizer.zero_grad(set_to_none=True)
            logits = self._logits(batch, ids)
            self._loss(logits, self._torch.from_numpy(batch.labels)).backward()
            self._optimizer.step()
            self._tables.step()
            samples += batch.num_samples
        return samples / (time.perf_counter() - began)

    def auc(self, reader: Reader, batches: int) -> float:
        """Return the AUC on so many batches."""
        auc = StreamingAuc()
        with self._torch.no_grad():
            for batch, ids in self._read(reader, batches):
                auc.add(self._logits(batch, ids).numpy(), batch.labels)
        return auc.value()

    def _logits(self, batch: Batch, ids: Any) -> Any:
        torch = self._torch
        bottom = self._bottom(torch.from_numpy(batch.dense))
        vectors = torch.cat([bottom.unsqueeze(1), self._tables.forward(ids)], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self._lower[0], self._lower[1]]
        return self._top(torch.cat([bottom, dots], 1)).squeeze(1)

    def _read(self, reader: Reader, batches: int) -> Iterator[tuple[Batch, Any]]:
        ahead: queue.Queue[tuple[Batch, np.ndarray] | BaseException] = queue.Queue(_AHEAD)

        def read() -> None:
            try:
                for number in range(batches):
                    batch, _ = reader.read(number)
                    keys = np.stack([bags.keys for bags in batch.sparse], 1)
                    own = Batch(batch.labels.copy(), batch.dense.copy(), batch.sparse)
                    ahead.put((own, self._tables.numbers(keys)))
            except BaseException as error:
                ahead.put(error)

        threading.Thread(target=read, daemon=True).start()
        for _ in range(batches):
            got = ahead.get()
            if isinstance(got, BaseException):
                raise got
            yield got[0], self._torch.from_numpy(got[1])


def table_sizes(limit: int) -> list[int]:
    """Return the rows of each table."""
    return [min(values, limit) for values in CARDINALITIES]


def _layers(torch: Any, widths: tuple[int, ...], *, relu_last: bool) -> Any:
    modules: list[Any] = []
    for inputs, outputs in pairwise(widths):
        linear = torch.nn.Linear(inputs, outputs)
        torch.nn.init.xavier_uniform_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*(modules if relu_last else modules[:-1]))
