"""The data and the model of the simulation: tiny, and a function of seed and batch id.

Gradients depend on every value that was pulled, so a wrong read changes the model for good. All
arithmetic is float32 in a fixed order, the same for any number of shards.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedding.spec.admission import CounterAdmission
from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Adagrad, AdamAsync
from embedding.spec.table import TableSpec
from ps.client.deduplicate import Deduplicated, Deduplicator
from ps.routing import Routing
from ps.spec import StoreSpec
from simulation.scenario import Scenario
from worker.metrics import bin_of, log_loss_sum
from worker.protocol import Evaluation, Token, TokenKind

DIM = 2
DENSE_SIZE = 2100  # three blocks: shards differ in their part, and sums have an order
AUC_BINS = 1 << 16
_KEYS_PER_SAMPLE = (2, 1)  # of each table
_NUM_KEYS = 40

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one batch.

    Args:
        labels: float32[n].
        unique: distinct keys, by shard.
        noise: float32[occurrences, DIM], part of the gradient.
        dense_noise: float32[DENSE_SIZE].
    """

    labels: Float32s
    unique: Deduplicated
    noise: Float32s
    dense_noise: Float32s

    @property
    def num_samples(self) -> int:
        return len(self.labels)


class Workload:
    """Batches of a scenario, sliced for a number of shards."""

    def __init__(self, scenario: Scenario, *, shards: int, routing: Routing | None = None) -> None:
        self.scenario = scenario
        self.store = StoreSpec(
            tables=_tables(scenario),
            dense_size=DENSE_SIZE,
            dense_optimizer=Adagrad(learning_rate=0.05),
            num_shards=shards,
            dense_clip_norm=scenario.dense_clip_norm,
            sparse_mean=scenario.sparse_mean,
            uneven=routing,
        )
        self._deduplicate = Deduplicator([DIM] * 2, self.store.routing)
        self._cache: dict[tuple[TokenKind, int, int], Samples] = {}

    @cached_property
    def initial_dense(self) -> Float32s:
        rng = np.random.default_rng([self.scenario.seed, 99])
        return rng.standard_normal(DENSE_SIZE, np.float32)

    # Reading ----------------------------------------------------------------------------------

    def read(self, token: Token) -> tuple[Samples | None, int]:
        """Return the samples that can be read (None: none) and how many can't."""
        if token.kind == "eval":
            return self.samples("eval", token.batch_id, self.scenario.batch_size), 0
        planned = self.scenario.rows_of(token.batch_id)
        skipped = self._unreadable(token, planned)
        if skipped == planned:
            return None, skipped
        return self.samples("train", token.batch_id, planned - skipped), skipped

    def _unreadable(self, token: Token, planned: int) -> int:
        luck, part = self._luck(token, 0)
        if luck >= self.scenario.bad_batches:
            return 0
        return planned if part < 0.5 else min(planned, 1 + int(part * 2))

    def is_finite(self, token: Token) -> bool:
        """Whether the gradient of a batch can be used."""
        return self._luck(token, 1)[0] >= self.scenario.non_finite

    def is_long(self, token: Token) -> bool:
        """Whether a batch takes far longer than others."""
        long = self.scenario.long_batches
        return long > 0 and self._luck(token, 2)[0] < long

    def _luck(self, token: Token, what: int) -> tuple[float, float]:
        attempt = token.attempt if self.scenario.flaky else 0
        rng = np.random.default_rng([self.scenario.seed, 7 + what, token.batch_id, attempt])
        return float(rng.random()), float(rng.random())

    def samples(self, kind: TokenKind, batch_id: int, num_samples: int) -> Samples:
        """Return the first samples of a batch."""
        name = kind, batch_id, num_samples
        if name not in self._cache:
            self._cache[name] = self._make(kind, batch_id, num_samples)
        return self._cache[name]

    def _make(self, kind: TokenKind, batch_id: int, n: int) -> Samples:
        planned = self.scenario.batch_size
        rng = np.random.default_rng([self.scenario.seed, kind == "eval", batch_id])
        tables = []
        for table, per_sample in enumerate(_KEYS_PER_SAMPLE):
            # Some keys are frequent, and new ones keep coming as the job goes on.
            ids = (_NUM_KEYS * rng.random((planned, per_sample)) ** 2).astype(np.int64)
            ids += np.int64(batch_id // 4) * (rng.random(ids.shape) < 0.3)
            tables.append(_spread(ids, table)[:n].ravel())
        starts = np.cumsum([0, *(len(keys) for keys in tables)])
        return Samples(
            labels=(rng.random(planned) < 0.4).astype(np.float32)[:n],
            unique=self._deduplicate(np.concatenate(tables), starts),
            noise=rng.standard_normal((planned * 3, DIM), np.float32)[: n * 3],
            dense_noise=rng.standard_normal(DENSE_SIZE, np.float32),
        )

    # The model --------------------------------------------------------------------------------

    def logits(self, samples: Samples, values: Float32s, dense: Float32s) -> Float32s:
        """Return float32[n]: sums of a sample's vectors and of a dense parameter or two."""
        n = samples.num_samples
        rows = values.reshape(-1, DIM)[samples.unique.positions // DIM]
        of_rows = rows[:, 0] + rows[:, 1]
        bias = dense[:n] + dense[-n:]
        return of_rows[: 2 * n : 2] + of_rows[1 : 2 * n : 2] + of_rows[2 * n :] + bias

    def train(
        self, samples: Samples, values: Float32s, dense: Float32s
    ) -> tuple[float, Float32s, Float32s]:
        """Return the loss, and sums of gradients laid out as `values` and as `dense`."""
        n = samples.num_samples
        error = np.clip(self.logits(samples, values, dense) - samples.labels, -4, 4)
        rows = values.reshape(-1, DIM)
        places = samples.unique.positions // DIM
        of_sample = np.concatenate([np.repeat(error, 2), error])
        per_key = of_sample[:, None] * (1 + samples.noise) + np.float32(0.1) * rows[places]
        gradients = np.zeros_like(rows)
        np.add.at(gradients, places, per_key)
        dense_gradients = np.float32(n * 0.01) * dense + samples.dense_noise * error.sum()
        return float(np.abs(error).sum()), gradients.ravel(), dense_gradients

    def evaluate(self, samples: Samples, values: Float32s, dense: Float32s) -> Evaluation:
        """Return the scores of a batch."""
        logits = self.logits(samples, values, dense)
        return Evaluation(
            bin_of(logits, AUC_BINS), samples.labels > 0.5, log_loss_sum(logits, samples.labels)
        )


def _spread(ids: npt.NDArray[np.int64], table: int) -> npt.NDArray[np.int64]:
    """Turn small numbers into keys all over int64, negative ones and both ends included."""
    keys = ids * np.int64(0x3C6EF372FE94F82B) + np.int64(table)
    keys[ids == 1] = np.iinfo(np.int64).min
    keys[ids == 2] = np.iinfo(np.int64).max
    return keys


def _tables(scenario: Scenario) -> tuple[TableSpec, ...]:
    second = scenario.evicted_min_count
    return (
        TableSpec(
            name="counted",
            dim=DIM,
            seed=scenario.seed,
            optimizer=Adagrad(learning_rate=0.05),
            admission=CounterAdmission(min_count=scenario.min_count),
            default_value=0.25,
        ),
        TableSpec(
            name="evicted",
            dim=DIM,
            seed=scenario.seed,
            optimizer=AdamAsync(learning_rate=0.02),
            admission=CounterAdmission(min_count=second) if second else None,
            eviction=Eviction(
                steps_to_live=scenario.steps_to_live, every_steps=scenario.evict_every_steps
            ),
        ),
    )
