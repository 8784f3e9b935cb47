"""CUDA graphs: the operations of a batch recorded once, and then started all at once."""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from worker.models.user_code import UserCodeError

_log = logging.getLogger(__name__)

# Batches of one size in a row, before theirs is taken for the usual one.
_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed of a batch.

    Args:
        flat: float32[any], the loss, the logits and all gradients that there are.
        present: of each gradient, whether there is one.
    """

    flat: torch.Tensor
    present: tuple[bool, ...]


class Recorded(Protocol):
    """Operations that can be done again, as `torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


Step = Callable[[torch.Tensor], Computed]
"""Computes a batch from its inputs, float32[any]."""
Record = Callable[[Callable[[], Computed]], tuple[Recorded, Computed]]
"""Records what a function does, and returns what it gave: written anew by each replay."""


@dataclass(slots=True)
class _Graph:
    key: Hashable
    inputs: torch.Tensor
    recorded: Recorded
    computed: Computed
    tried: bool = False

    def replay(self, inputs: torch.Tensor) -> Computed:
        self.inputs.copy_(inputs)
        self.recorded.replay()
        return self.computed


class Graphs:
    """Computes batches, those of the usual size by a graph, once it is known to give the same bits.

    A batch of another size, such as the last of an epoch, is computed operation by operation. So
    are all of a module of which no graph can be made: that draws random numbers, as dropout does,
    since what seeds them is not part of a graph; that waits for the device, as whatever makes a
    shape of values does; or whose graph gives other bits for the batch that comes next. Which it
    is is logged, once.

    Args:
        record: makes a graph.
        draws: returns the states of all generators that a module may draw from.
        refuse_waiting: has what waits for the device fail, or not any more.
    """

    def __init__(
        self,
        *,
        record: Record,
        draws: Callable[[], tuple[bytes, ...]],
        refuse_waiting: Callable[[bool], None],
    ) -> None:
        self._record = record
        self._draws = draws
        self._refuse_waiting = refuse_waiting
        self._key: Hashable = None
        self._in_a_row = 0
        self._graph: _Graph | None = None
        self._given_up = False

    def run(self, key: Hashable, inputs: torch.Tensor, step: Step) -> Computed:
        """Compute a batch; what is returned is valid until the next one.

        Args:
            key: alike for batches of the same shapes.
        """
        graph = self._graph
        if graph is not None and graph.key == key and graph.tried:
            return graph.replay(inputs)
        computed = step(inputs)
        if self._given_up:
            return computed
        if graph is not None:
            if graph.key == key:
                self._try(graph, inputs, computed)
            return computed
        self._in_a_row = self._in_a_row + 1 if key == self._key else 1
        self._key = key
        if self._in_a_row >= _IN_A_ROW:
            self._make(key, inputs, step)
        return computed

    def _make(self, key: Hashable, inputs: torch.Tensor, step: Step) -> None:
        """Record a batch, unless it does what can't be recorded."""
        before = self._draws()
        self._refuse_waiting(True)
        try:
            step(inputs)
        except UserCodeError as error:
            self._give_up(str(error))
            return
        finally:
            self._refuse_waiting(False)
        if self._draws() != before:
            self._give_up("forward draws random numbers, which each batch has of its own")
            return
        own = inputs.clone()
        recorded, computed = self._record(lambda: step(own))
        self._graph = _Graph(key, own, recorded, computed)

    def _try(self, graph: _Graph, inputs: torch.Tensor, computed: Computed) -> None:
        """Take a graph only if it gives the bits of another batch than the one it was made of."""
        again = graph.replay(inputs)
        # As bits: NaN is like NaN.
        same = torch.equal(again.flat.view(torch.int32), computed.flat.view(torch.int32))
        graph.tried = same and again.present == computed.present
        if not graph.tried:
            self._graph = None
            self._give_up("a graph of it gives other numbers than its operations one by one")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        _log.warning(
            "model.cuda_graphs has no effect, batches are computed operation by operation: %s",
            reason,
        )


def graphs_of_cuda(stream: Any, path: str) -> Graphs:
    """Return graphs that are recorded on a stream.

    Args:
        path: `model.class`.
    """

    def record(work: Callable[[], Computed]) -> tuple[Recorded, Computed]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may wait for batches that were sent before.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                computed = work()
        except Exception as error:  # what CUDA says; its state is not known any more
            raise UserCodeError(
                f"model.class {path!r}: no CUDA graph can be made of it ({error}); leave"
                " model.cuda_graphs out"
            ) from error
        return graph, computed

    def draws() -> tuple[bytes, ...]:
        states = torch.cuda.get_rng_state(), torch.get_rng_state()
        return tuple(state.numpy().tobytes() for state in states)

    def refuse_waiting(refused: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if refused else "default")

    return Graphs(record=record, draws=draws, refuse_waiting=refuse_waiting)
