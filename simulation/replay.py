"""The records and contributions of a run once more, in the order of k, on one table of each kind.

Without buffers, connections or step checks: what a job means, against which what it did is held.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.table.links import make_variables
from ps.checkpoint.digest import block_digests, bucket_digests, model_digest
from ps.checkpoint.restore import load_tables
from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.records import Record
from ps.shard.dense import DenseBlocks
from ps.shard.merge import merge
from ps.spec import StoreSpec
from scheduler.coordinator.evaluation import EvaluationResult
from simulation.data import AUC_BINS, DIM, Workload
from simulation.referee import require
from simulation.saved import SavedJob
from simulation.seen import Seen
from worker.metrics import StreamingAuc, log_loss_sum

_NUM_TABLES = 2


class Replay:
    """A model without shards.

    Args:
        workload: of the run, sliced for one shard.
        sharded: the store of the run.
        earlier: the job that it goes on from.
    """

    def __init__(
        self, workload: Workload, sharded: StoreSpec, earlier: SavedJob | None = None
    ) -> None:
        self._workload = workload
        self._sharded = sharded
        self._spec = workload.store
        self._dense = DenseBlocks(self._spec, 0)
        if earlier is None:
            self._tables = make_variables(self._spec.tables)
            self._dense.initialize(workload.initial_dense)
        else:
            self._tables = list(load_tables(earlier).values())
            self._dense.restore(earlier.dense_rows())
        # The latest step that evicted a key, never forgotten: one dict a table.
        self._evicted: list[dict[int, int]] = [{} for _ in self._tables]

    def run(self, seen: Seen, evaluations: list[EvaluationResult]) -> None:
        """Apply every record; compare what was pulled and evaluated on the way."""
        pulls: dict[int, list[tuple[int, Pull, PullReply]]] = {}
        for shard, pull, reply in seen.pulls:
            pulls.setdefault(reply.step, []).append((shard, pull, reply))
        dense: dict[int, list[tuple[int, npt.NDArray[np.float32]]]] = {}
        for first, step, values in seen.dense:
            dense.setdefault(step, []).append((first, values))
        results: dict[int, list[EvaluationResult]] = {}
        for result in evaluations:
            results.setdefault(result.step, []).append(result)
        for step in range(seen.first_step, seen.step + 1):
            for shard, pull, reply in pulls.get(step, []):
                self._compare_pull(shard, pull, reply)
            for first, values in dense.get(step, []):
                require(
                    np.array_equal(self._dense.vector[first : first + values.size], values),
                    "a worker has dense parameters from {} on that are not those of step {}",
                    first,
                    step,
                )
            for result in results.get(step, []):
                self._compare_evaluation(result)
            for record in seen.records_between(step, step + 1):
                self._apply(record, seen)

    def digest(self) -> str:
        tables = {
            table.spec.name: bucket_digests(table, (0, NUM_BUCKETS)) for table in self._tables
        }
        return model_digest(tables, block_digests(self._dense))

    # Comparing --------------------------------------------------------------------------------

    def _compare_pull(self, shard: int, pull: Pull, reply: PullReply) -> None:
        values, admitted = self._read(pull)
        same = np.array_equal(values, reply.values) and np.array_equal(admitted, reply.admitted)
        require(
            same, "shard {} answered a pull with something else than step {}", shard, reply.step
        )

    def _read(self, pull: Pull) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        values = np.empty((len(pull.keys), DIM), np.float32)
        admitted = np.empty(len(pull.keys), np.uint8)
        start = 0
        for table, size in zip(self._tables, pull.table_sizes, strict=True):
            part = slice(start, start + size)
            counts = pull.counts[part] if pull.counts.size else None
            table.pull(pull.keys[part], counts, values[part], admitted[part])
            start += size
        return values.ravel(), admitted

    def _compare_evaluation(self, result: EvaluationResult) -> None:
        scenario = self._workload.scenario
        auc, loss = StreamingAuc(AUC_BINS), 0.0
        for batch_id in range(scenario.eval_batches):
            samples = self._workload.samples("eval", batch_id, scenario.batch_size)
            unique = samples.unique
            pull = Pull(
                0, 0, 0, 0, tuple(unique.sizes[0].tolist()), unique.keys,
                np.empty(0, np.uint32), True,
            )  # fmt: skip
            logits = self._workload.logits(samples, self._read(pull)[0], self._dense.vector)
            auc.add(logits, samples.labels)
            loss += log_loss_sum(logits, samples.labels)
        rows = scenario.eval_batches * scenario.batch_size
        require(result.samples == rows, "{} samples were to be evaluated: {}", rows, result)
        same = np.array_equal([auc.value(), loss / rows], [result.auc, result.logloss], True)
        require(
            same, "the model of the step has AUC {}, loss {}: {}", auc.value(), loss / rows, result
        )

    # Applying ---------------------------------------------------------------------------------

    def _apply(self, record: Record, seen: Seen) -> None:
        if record.divisor > 0 and any(entry.weight > 0 for entry in record.entries):
            self._update(record, seen)
        for eviction in record.evict:
            table = eviction.table
            for key in self._tables[table].evict(eviction.min_version).tolist():
                self._evicted[table][key] = record.step

    def _update(self, record: Record, seen: Seen) -> None:
        live = [entry for entry in record.entries if entry.weight > 0]
        joined = [self._join(seen, entry.batch_id, entry.attempt) for entry in live]
        contributions = [contribution for contribution, _ in joined]
        weights = [entry.weight for entry in live]
        of_contributors = self._spec.sparse_mean == "contributors"
        scale = np.float32(1.0 if of_contributors else 1.0 / record.divisor)
        scalars = [np.array(values) for values in record.scalars]
        optimizers = self._spec.optimizers
        merged = merge(
            contributions,
            weights,
            [mask for _, mask in joined],
            [DIM] * _NUM_TABLES,
            mean_of_contributors=of_contributors,
        )
        for number, table in enumerate(self._tables):
            part = merged.of(number)
            table.apply(
                part.keys,
                part.counts,
                part.gradients,
                part.has_gradient,
                step=record.step,
                scale=float(scale),
                scalars=scalars[optimizers.index(table.spec.optimizer)],
            )
        slot = optimizers.index(self._spec.dense_optimizer)
        scale = np.float32(record.dense_factor / record.divisor)
        self._dense.apply(contributions, weights, scale=scale, scalars=scalars[slot])

    def _join(
        self, seen: Seen, batch_id: int, attempt: int
    ) -> tuple[Contribution, npt.NDArray[np.uint8] | None]:
        """Join a contribution's parts table by table; mark keys evicted since each was pulled."""
        parts = [seen.pushed[batch_id, attempt, s] for s in range(self._sharded.num_shards)]
        order = seen.by_block[parts[0].routing_version]
        pieces: list[tuple[Contribution, slice, slice]] = []
        sizes, late = [], []
        for table in range(_NUM_TABLES):
            size = 0
            for part in parts:
                start = sum(part.table_sizes[:table])
                keys = slice(start, start + part.table_sizes[table])
                first = int(np.count_nonzero(part.admitted[:start]))
                rows = slice(first, first + int(np.count_nonzero(part.admitted[keys])))
                pieces.append((part, keys, rows))
                evicted = self._evicted[table]
                late += [evicted.get(k, -1) >= part.pull_step for k in part.keys[keys].tolist()]
                size += part.table_sizes[table]
            sizes.append(size)
        joined = replace(
            parts[0],
            table_sizes=tuple(sizes),
            keys=np.concatenate([p.keys[keys] for p, keys, _ in pieces]),
            counts=np.concatenate([p.counts[keys] for p, keys, _ in pieces]),
            admitted=np.concatenate([p.admitted[keys] for p, keys, _ in pieces]),
            gradients=np.concatenate(
                [p.gradients.reshape(-1, DIM)[rows] for p, _, rows in pieces]
            ).ravel(),
            dense=np.concatenate([parts[s].dense for s in order]),
        )
        return joined, 1 - np.array(late, np.uint8) if any(late) else None
