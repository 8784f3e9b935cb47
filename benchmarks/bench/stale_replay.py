"""Training in one process in which staleness is an input: real shard, worker's step, no threads."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bench.stale_cases import Case
from bench.step_length import StepLength
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.messages.records import Apply, ApplyReply, Entry, Record, Totals
from ps.routing import BLOCK_SIZE
from ps.shard.shard import Shard
from scheduler.coordinator.step_scalars import scalars_of_step
from scheduler.driver.resolved import JobSpecs
from worker.data.reading import Reader
from worker.inference import Predictor
from worker.metrics import exact_auc
from worker.models import build_model, initial_parameters
from worker.running import make_preparer
from worker.step.computing import Computation
from worker.step.preparing import Prepared

Float32s = npt.NDArray[np.float32]

_OLDEST = 16
# Batches of so many steps may meet in one.
_MOST_STEPS = 16


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Args:
        auc: on the evaluation files, after the last step.
        step_size: of the last steps, see `StepLength`; NaN: too few.
        dense_squares: mean of the first slot of dense parameters: Adagrad's sum of squares.
        slots: of dense parameters after each step, float32[blocks, slots].
    """

    auc: float
    step_size: float
    dense_squares: float
    slots: list[Float32s]


@dataclass(slots=True)
class _Pulled:
    prepared: Prepared
    reply: PullReply


class StaleReplay:
    """Trains a job's batches in steps of M, each with parameters as old as a case says.

    Args:
        specs: of a job with one server, without admission and eviction, whose dense parameters
            have an optimizer with slots, and whose model's last parameter is added to all logits.
        prepared: keeps prepared batches by id, for other replays with the same data and seed.
    """

    def __init__(self, specs: JobSpecs, prepared: dict[int, Prepared]) -> None:
        self._specs = specs
        self._m = specs.coordinator.group_size
        self._prepared = prepared
        self._reader = Reader(specs.plan, specs.data.features)
        self._prepare = make_preparer(specs.store, specs.model.lookups, specs.data.features.sparse)
        self._computation = Computation(specs.model)
        self._shard = Shard(specs.store, 0, max_contributions=1 << 12, max_buffer_bytes=1 << 33)
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        self._shard.initialize(0, dense=dense)
        self._length = StepLength()
        self._versions: list[Float32s] = []

    def run(self, case: Case, steps: int, slots_of_sync: list[Float32s]) -> Replayed:
        """Train so many steps.

        Args:
            case: whose staleness is at most 15.
            slots_of_sync: those of the same job in `sync`, where the case needs them.
        """
        slots = self._shard.dense.rows[:, BLOCK_SIZE:]
        if case.slots == "warm":
            slots[:] = slots_of_sync[-1]
        kept = []
        # Where each batch is pulled: in which step, and after how many of its pushes.
        pulls: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for step in range(steps):
            for place in range(self._m):
                at = max(0, step - case.rows(step, place))
                after = 0 if at == step else place + 1
                pulls.setdefault((at, after), []).append((step, place))
        held: dict[tuple[int, int], _Pulled] = {}
        for step in range(steps):
            self._versions = [*self._versions[1 - _OLDEST :], self._shard.dense.vector]
            batches = case.order(step, self._m)
            samples, residual = 0, 0.0
            held |= self._pull_all(case, pulls.pop((step, 0), []))
            for place, batch in enumerate(batches):
                pulled = held.pop((step, place))
                samples_of_batch, residual_of_batch = self._train(case, step, place, batch, pulled)
                samples += samples_of_batch
                residual += residual_of_batch
                held |= self._pull_all(case, pulls.pop((step, place + 1), []))
            self._length.step(residual / samples)
            self._apply(step, batches[::-1] if case.reversed_sums else batches, samples)
            if case.slots == "as in sync":
                slots[:] = slots_of_sync[step]
            kept.append(slots.copy())
        share = self._length.share
        return Replayed(
            auc=self._auc(),
            step_size=float("nan") if share is None else share,
            dense_squares=float(slots.mean()),
            slots=kept,
        )

    def _pull_all(
        self, case: Case, places: list[tuple[int, int]]
    ) -> dict[tuple[int, int], _Pulled]:
        return {
            (step, place): self._pull(case.order(step, self._m)[place], step, ahead=case.ahead)
            for step, place in places
        }

    def _pull(self, batch: int, step: int, *, ahead: bool) -> _Pulled:
        if batch not in self._prepared:
            self._prepared[batch] = self._prepare(self._reader.read(batch)[0])
        prepared = self._prepared[batch]
        unique = prepared.unique
        reply = self._shard.answer(
            Pull(
                request_id=0, recovery_epoch=0, routing_version=0, at_step=ANY_STEP,
                table_sizes=tuple(unique.sizes[0].tolist()), keys=unique.keys,
                counts=unique.counts, dense=ahead, for_step=step,
            )
        )  # fmt: skip
        if not isinstance(reply, PullReply):
            raise RuntimeError(f"batch {batch} was not pulled: {reply}")
        return _Pulled(prepared, reply)

    def _train(
        self, case: Case, step: int, place: int, batch: int, pulled: _Pulled
    ) -> tuple[int, float]:
        """Compute and push a batch; return its samples and their residuals' sum."""
        dense = pulled.reply.dense
        if not case.ahead:
            late = min(case.dense(step, place), len(self._versions) - 1)
            dense = self._versions[-1 - late]
        if case.half_of_keys:
            pulled = self._half_fresh(batch, step, pulled)
            half = len(dense) // 2
            dense = np.concatenate([dense[:half], self._versions[-1][half:]])
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
        return prepared.num_samples, float(of_dense[-1])

    def _half_fresh(self, batch: int, step: int, pulled: _Pulled) -> _Pulled:
        """Take every other key's row as it is now."""
        now = self._pull(batch, step, ahead=False).reply
        unique, values = pulled.prepared.unique, pulled.reply.values.copy()
        dims = [table.dim for table in self._specs.store.tables]
        of_key = np.repeat(dims, unique.sizes[0])
        fresh = np.repeat(unique.keys % 2 == 0, of_key)
        values[fresh] = now.values[fresh]
        return _Pulled(pulled.prepared, replace(pulled.reply, values=values))

    def _apply(self, step: int, batches: list[int], samples: int) -> None:
        record = Record(
            step=step, recovery_epoch=0, mode_epoch=0,
            entries=tuple(Entry(batch, 0, 1.0) for batch in batches), divisor=samples,
            scalars=scalars_of_step(
                self._specs.store, step=step, clock=step, learning_rate_scale=1.0
            ),
            clock=step, low_water=max(0, step - _MOST_STEPS) * self._m,
            oldest_pull_step=max(0, step - _OLDEST), applied_step=step, totals=Totals(mode="gba"),
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
