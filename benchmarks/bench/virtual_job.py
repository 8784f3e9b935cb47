"""A whole job on a virtual clock: only the time of batches is made up, and so what is stale.

The coordinator, workers' sessions, shards and what a worker computes are the real ones. So quality
is that of a job whose workers take such times, speed is what these times allow, and both are the
same on every machine and in every run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ps.client.deduplicate import Deduplicated
from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.records import Apply, ApplyReply, Record
from ps.routing import BLOCK_SIZE
from ps.shard.shard import Shard
from scheduler.driver.resolved import JobSpecs
from simulation.fleet import Fleet, FleetSpec
from worker.data.reading import Reader
from worker.inference import Predictor
from worker.metrics import exact_auc
from worker.models import build_model, initial_parameters
from worker.protocol import Finished, Token
from worker.running import make_preparer
from worker.step.computing import Computation, Float32s
from worker.step.preparing import Prepared

# What a report and its answer take, and what steps take: as on one machine.
_CALL_SECONDS = 0.001
_HANDLE_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a job.

    Args:
        auc: on the evaluation files.
        samples_per_second: of virtual time, from its beginning to the last step.
        dropped, reissued: samples that weighed nothing, and batches that were trained again.
        parameter_staleness: mean and greatest, in steps.
        gba_from: samples after which it went to gba from sync; None: it did not.
        dense_squares: mean of the first slot of dense parameters: Adagrad's sum of squares.
    """

    auc: float
    samples_per_second: float
    dropped: int
    reissued: int
    parameter_staleness: tuple[float, float]
    gba_from: int | None
    dense_squares: float


@dataclass(slots=True)
class _Read:
    prepared: Prepared
    replies: list[PullReply]


class VirtualJob(Fleet):
    """Trains a job whose workers take drawn times.

    Args:
        specs: of a job without admission, eviction and clipping; its workers are as many as it
            says.
        slower: so many times as long the first worker takes for a batch; 1: none does.
        seed: of the times.
        prepared: keeps prepared batches by id, for other jobs with the same data and seed.
    """

    def __init__(
        self,
        specs: JobSpecs,
        *,
        slower: float,
        seed: int,
        prepared: dict[int, Prepared],
        batch_seconds: float = 0.05,
    ) -> None:
        spec = specs.coordinator
        super().__init__(
            FleetSpec(
                mode=spec.mode,
                workers=spec.workers,
                group_size=spec.group_size,
                depth=spec.depth,
                batch_seconds=batch_seconds,
                stragglers=0.0 if slower == 1 else 1 / spec.workers,
                slower=slower,
                call_seconds=_CALL_SECONDS,
                handle_seconds=_HANDLE_SECONDS,
                shards=spec.store.num_shards,
                seed=seed,
            ),
            replace(spec, evaluation_plan=None),
        )
        self._specs = specs
        self._prepared = prepared
        self._reader = Reader(specs.plan, specs.data.features)
        self._prepare = make_preparer(specs.store, specs.model.lookups, specs.data.features.sparse)
        self._computation = Computation(specs.model)
        self._reads: dict[int, _Read] = {}
        self.shards = [
            Shard(specs.store, index, max_contributions=1 << 12, max_buffer_bytes=1 << 33)
            for index in range(specs.store.num_shards)
        ]
        dense = initial_parameters(build_model(specs.model), specs.model.seed)
        for shard in self.shards:
            shard.initialize(0, dense=dense[slice(*specs.store.routing.dense_range(shard.index))])

    def run(self) -> Trained:
        """Train it to its end and evaluate."""
        self.finish()
        ledger, stale = self.coordinator.ledger, self.coordinator.parameter_staleness.summary()
        shifts = self.coordinator.modes.shifts
        return Trained(
            auc=self._auc(),
            samples_per_second=ledger.samples.total / self.now,
            dropped=ledger.samples.dropped,
            reissued=ledger.tallies.reissued,
            parameter_staleness=(stale.mean, stale.max),
            gba_from=shifts[0].samples if shifts and shifts[0].to_mode == "gba" else None,
            dense_squares=float(
                np.concatenate([s.dense.rows for s in self.shards])[:, BLOCK_SIZE:].mean()
            ),
        )

    # What batches and steps do ----------------------------------------------------------------

    def _read(self, number: int, token: Token) -> None:
        prepared = self._batch(token.batch_id)
        unique = prepared.unique
        replies = []
        for shard in self.shards:
            part = slice(unique.key_starts[shard.index], unique.key_starts[shard.index + 1])
            reply = shard.answer(
                Pull(
                    request_id=0, recovery_epoch=0, routing_version=0, at_step=token.at_step,
                    table_sizes=tuple(unique.sizes[shard.index].tolist()), keys=unique.keys[part],
                    counts=unique.counts[part], dense=True, for_step=token.step,
                )
            )  # fmt: skip
            if not isinstance(reply, PullReply):
                raise RuntimeError(f"shard {shard.index} did not answer {token}: {reply}")
            replies.append(reply)
        self._reads[number] = _Read(prepared, replies)

    def _computed(self, number: int, token: Token) -> Finished:
        read = self._reads.pop(number)
        prepared, unique = read.prepared, read.prepared.unique
        values = np.concatenate([reply.values for reply in read.replies])
        dense = np.concatenate([reply.dense for reply in read.replies])
        loss, gradients, of_dense = self._computation.train(prepared, values, dense)
        for shard, reply in zip(self.shards, read.replies, strict=True):
            pushed = self._contribution(
                token, shard.index, reply, unique, gradients, of_dense, prepared.num_samples
            )
            shard.handle(pushed, None)
        return Finished(token, "done", samples=prepared.num_samples, loss_sum=loss)

    def _contribution(
        self,
        token: Token,
        shard: int,
        reply: PullReply,
        unique: Deduplicated,
        gradients: Float32s,
        dense: Float32s,
        samples: int,
    ) -> Contribution:
        part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
        values = slice(unique.value_starts[shard], unique.value_starts[shard + 1])
        return Contribution(
            request_id=0, recovery_epoch=0, mode_epoch=token.mode_epoch, routing_version=0,
            batch_id=token.batch_id, attempt=token.attempt, samples=samples, pull_step=reply.step,
            table_sizes=tuple(unique.sizes[shard].tolist()), keys=unique.keys[part],
            counts=unique.counts[part], gradients=gradients[values].copy(),
            dense=dense[slice(*self._specs.store.routing.dense_range(shard))].copy(),
            admitted=reply.admitted,
        )  # fmt: skip

    def _apply(self, records: Sequence[Record]) -> None:
        for shard in self.shards:
            (out,) = shard.handle(Apply(0, 0, tuple(records)), None)
            if not isinstance(out.reply, ApplyReply):
                raise RuntimeError(f"shard {shard.index} did not apply {records}: {out.reply}")

    def _batch(self, batch_id: int) -> Prepared:
        if batch_id not in self._prepared:
            self._prepared[batch_id] = self._prepare(self._reader.read(batch_id)[0])
        return self._prepared[batch_id]

    def _auc(self) -> float:
        specs = self._specs
        if specs.evaluation_plan is None or len(self.shards) > 1:
            raise ValueError("it takes one server, and data.eval, to evaluate")
        predictor = Predictor(
            model=specs.model,
            features=specs.data.features,
            tables={table.spec.name: table for table in self.shards[0].tables},
            dense=self.shards[0].dense.vector,
        )
        reader = Reader(specs.evaluation_plan, specs.data.features)
        batches = [reader.read(i)[0] for i in range(specs.evaluation_plan.batches_per_epoch)]
        logits = np.concatenate([predictor.logits(batch) for batch in batches])
        return exact_auc(logits, np.concatenate([batch.labels for batch in batches]))
