"""Training in one process in which staleness is an input: real shard, worker's step, no threads."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.messages.records import Apply, ApplyReply, Entry, Record
from ps.routing import BLOCK_SIZE
from ps.shard.shard import Shard
from scheduler.coordinator.modes.settling import Settling
from scheduler.coordinator.step_scalars import scalars_of_step
from scheduler.driver.resolved import JobSpecs
from worker.data.reading import Reader
from worker.inference import Predictor
from worker.metrics import exact_auc
from worker.models import build_model, initial_parameters
from worker.running import make_preparer
from worker.step.computing import Computation
from worker.step.preparing import Prepared

# Steps by which the batch i of step k is late: the step of its own minus the one that it read.
Staleness = Callable[[int, int], int]

_OLDEST = 16


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Args:
        auc: on the evaluation files, after the last step.
        step_size: of the last steps, as `Settling` measures it; NaN: too few.
        dense_squares: mean of the first slot of dense parameters: Adagrad's sum of squares.
    """

    auc: float
    step_size: float
    dense_squares: float


@dataclass(slots=True)
class _Pulled:
    prepared: Prepared
    reply: PullReply


class StaleReplay:
    """Trains a job's batches in order, in steps of M, each with parameters as old as is said.

    Args:
        specs: of a job with one server, without admission and eviction, whose dense parameters
            have an optimizer with slots.
        prepared: keeps prepared batches by id, for other replays with the same data and seed.
    """

    def __init__(self, specs: JobSpecs, prepared: dict[int, Prepared]) -> None:
        self._specs = specs
        self._prepared = prepared
        self._reader = Reader(specs.plan, specs.data.features)
        self._prepare = make_preparer(specs.store, specs.model.lookups, specs.data.features.sparse)
        self._computation = Computation(specs.model)
        self._shard = Shard(specs.store, 0, max_contributions=1 << 12, max_buffer_bytes=1 << 33)
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        self._shard.initialize(0, dense=dense)
        self._settling = Settling(specs.coordinator.group_size)

    def run(self, steps: int, *, rows: Staleness, dense: Staleness) -> Replayed:
        """Train so many steps.

        Args:
            rows, dense: staleness of rows and of dense parameters, at most 15.
        """
        m = self._specs.coordinator.group_size
        pulls: dict[int, list[int]] = {}
        for batch in range(steps * m):
            pulls.setdefault(max(0, batch // m - rows(*divmod(batch, m))), []).append(batch)
        held: dict[int, _Pulled] = {}
        versions: list[npt.NDArray[np.float32]] = []
        for step in range(steps):
            versions = [*versions[1 - _OLDEST :], self._shard.dense.vector.copy()]
            held |= {batch: self._pull(batch) for batch in pulls.pop(step, [])}
            samples, residual = 0, 0.0
            for batch in range(step * m, (step + 1) * m):
                late = min(dense(*divmod(batch, m)), len(versions) - 1)
                samples += self._push(batch, held.pop(batch), versions[-1 - late])
                residual += self._computation.residual_sum or 0.0
            self._settling.step(residual / samples)
            self._apply(step, range(step * m, (step + 1) * m), samples)
        size = self._settling.step_size
        return Replayed(
            auc=self._auc(),
            step_size=float("nan") if size is None else size,
            dense_squares=float(self._shard.dense.rows[:, BLOCK_SIZE:].mean()),
        )

    def _pull(self, batch: int) -> _Pulled:
        if batch not in self._prepared:
            self._prepared[batch] = self._prepare(self._reader.read(batch)[0])
        prepared = self._prepared[batch]
        unique = prepared.unique
        sizes = tuple(unique.sizes[0].tolist())
        reply = self._shard.answer(
            Pull(0, 0, 0, ANY_STEP, sizes, unique.keys, unique.counts, dense=False)
        )
        if not isinstance(reply, PullReply):
            raise RuntimeError(f"batch {batch} was not pulled: {reply}")
        return _Pulled(prepared, reply)

    def _push(self, batch: int, pulled: _Pulled, dense: npt.NDArray[np.float32]) -> int:
        prepared, reply = pulled.prepared, pulled.reply
        _, gradients, of_dense = self._computation.train(prepared, reply.values, dense)
        unique = prepared.unique
        self._shard.handle(
            Contribution(
                request_id=0, recovery_epoch=0, mode_epoch=0, routing_version=0,
                batch_id=batch, attempt=0, samples=prepared.num_samples, pull_step=reply.step,
                table_sizes=tuple(unique.sizes[0].tolist()), keys=unique.keys,
                counts=unique.counts, gradients=gradients, dense=of_dense,
                admitted=reply.admitted,
            ),
            None,
        )  # fmt: skip
        return prepared.num_samples

    def _apply(self, step: int, batches: range, samples: int) -> None:
        record = Record(
            step=step, recovery_epoch=0, mode_epoch=0,
            entries=tuple(Entry(batch, 0, 1.0) for batch in batches), divisor=samples,
            scalars=scalars_of_step(
                self._specs.store, step=step, clock=step, learning_rate_scale=1.0
            ),
            clock=step, low_water=batches.start, oldest_pull_step=max(0, step - _OLDEST),
            applied_step=step,
        )  # fmt: skip
        (out,) = self._shard.handle(Apply(0, 0, (record,)), None)
        if not isinstance(out.reply, ApplyReply):
            raise RuntimeError(f"step {step} was not applied: {out.reply}")

    def _auc(self) -> float:
        specs = self._specs
        if specs.evaluation_plan is None:
            raise ValueError("data.eval names no files to evaluate on")
        predictor = Predictor(
            model=specs.model,
            features=specs.data.features,
            tables={table.spec.name: table for table in self._shard.tables},
            dense=self._shard.dense.vector,
        )
        reader = Reader(specs.evaluation_plan, specs.data.features)
        batches = [reader.read(i)[0] for i in range(specs.evaluation_plan.batches_per_epoch)]
        logits = np.concatenate([predictor.logits(batch) for batch in batches])
        return exact_auc(logits, np.concatenate([batch.labels for batch in batches]))
