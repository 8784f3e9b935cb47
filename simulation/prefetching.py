"""Shards that have rows on disk, and workers that tell them ahead what they will pull.

What is told may be lost, come twice or very late, and to a process that has another part of the
job by then. The referee holds the model against one whose rows are all in memory.
"""

from functools import partial
from random import Random
from typing import Any

from embedding.spec.tiers import Tiers
from ps.messages.pull_push import Prefetch
from ps.shard.prefetching import prefetch
from ps.shard.shard import Shard
from simulation.worker import SimulatedWorker
from worker.protocol import Token

_LOST, _DOUBLED, _VERY_LATE = 0.2, 0.2, 0.2
_LATE_SECONDS = 3.0


def shard_on_disk(folder: str) -> type[Shard]:
    """Return shards of which all tables have tiers in a folder."""

    class ShardOnDisk(Shard):
        def __init__(self, spec: Any, *arguments: Any, **options: Any) -> None:
            tiers = {table.name: Tiers(memory_bytes=1 << 16, path=folder) for table in spec.tables}
            super().__init__(spec, *arguments, tiers=tiers, **options)

    return ShardOnDisk


class PrefetchingWorker(SimulatedWorker):
    """Tells every copy of each shard what it will pull, over a network of its own."""

    def _take_batch(self, token: Token) -> None:
        super()._take_batch(token)
        if token not in self._prepared:
            return
        unique = self._prepared[token][0].unique
        # Of its own, so that a scenario is the same with and without.
        luck = Random(f"{self._world.scenario.seed} {self} {token}")
        for number in self._client.copies.numbers:
            shard = self._client.copies.shard_of(number)
            message = Prefetch(
                self.epoch,
                self._workload.store.routing.version,
                token.batch_id if token.kind == "train" else -1,
                token.attempt,
                tuple(unique.sizes[shard].tolist()),
                unique.keys[unique.key_starts[shard] : unique.key_starts[shard + 1]].copy(),
            )
            copies = (luck.random() >= _LOST) + (luck.random() < _DOUBLED)
            for _ in range(copies):
                late = luck.random() < _VERY_LATE
                seconds = luck.random() * (_LATE_SECONDS if late else 0.01)
                self._world.queue.later(seconds, partial(self._arrive, number, message))

    def _arrive(self, number: int, message: Prefetch) -> None:
        copies = len(self._network.shards)
        if number < copies or number - copies in self._network.standbys:
            process = self._network.process(number)
            assert process is not None, "it is one of them"
            prefetch(process, message, 0, message.keys.size)
