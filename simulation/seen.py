"""What a simulated run has done, as it was seen from outside of the state machines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.records import Record
from worker.protocol import Token


@dataclass(slots=True)
class Seen:
    """What a run has done, for the checks at its end.

    Args:
        earlier: the records of the job that this one goes on from; its steps come after theirs.
        records: all that were ordered, in their order.
        pushed: contributions that shards hold or held, by (batch, attempt, shard).
        pulls: what each shard answered: (shard, pull, reply).
        dense: what workers then had of each shard's dense parameters: (the first, step, values).
        tokens: of training, by (batch, attempt).
        skipped: batches that each record resolves without using them.
        reasons: samples that were skipped with each record, by reason.
        steps: of attempts that were given out before a change of mode, as they are since then.
        by_block: the shards in the order of their dense blocks, by the version of the routing.
    """

    earlier: Sequence[Record] = ()
    records: list[Record] = field(default_factory=list)
    pushed: dict[tuple[int, int, int], Contribution] = field(default_factory=dict)
    pulls: list[tuple[int, Pull, PullReply]] = field(default_factory=list)
    dense: list[tuple[int, int, npt.NDArray[np.float32]]] = field(default_factory=list)
    tokens: dict[tuple[int, int], Token] = field(default_factory=dict)
    skipped: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, Counter[str]] = field(default_factory=dict)
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    by_block: dict[int, list[int]] = field(default_factory=dict)

    def until(self, step: int) -> "Seen":
        """Return what was done before a step, and what was read of the state before it."""
        records = self.records_between(self.first_step, step)
        skipped = {at: batches for at, batches in self.skipped.items() if at < step}
        named = {(entry.batch_id, entry.attempt) for record in records for entry in record.entries}
        resolved = {batch_id for batch_id, _ in named}
        resolved |= {batch_id for batches in skipped.values() for batch_id in batches}
        return Seen(
            earlier=self.earlier,
            records=records,
            pushed={name: part for name, part in self.pushed.items() if name[:2] in named},
            pulls=[pull for pull in self.pulls if pull[2].step <= step],
            dense=[dense for dense in self.dense if dense[1] <= step],
            tokens={name: t for name, t in self.tokens.items() if name[0] in resolved},
            skipped=skipped,
            reasons={at: reasons for at, reasons in self.reasons.items() if at < step},
            steps={name: own for name, own in self.steps.items() if name[0] in resolved},
            by_block=self.by_block,
        )

    @property
    def resolved(self) -> set[int]:
        """The batches that the records have resolved."""
        applied = {entry.batch_id for record in self.records for entry in record.entries}
        return applied | {batch_id for batches in self.skipped.values() for batch_id in batches}

    @property
    def first_step(self) -> int:
        return len(self.earlier)

    @property
    def step(self) -> int:
        """The step that the next record has to be of."""
        return len(self.earlier) + len(self.records)

    def records_between(self, first: int, end: int) -> list[Record]:
        """Return the records of steps [first, end), those of the earlier job left out."""
        return self.records[max(0, first - self.first_step) : max(0, end - self.first_step)]


def staleness(seen: Seen) -> tuple[Counter[int], Counter[int]]:
    """Return how often each data and each parameter staleness occurred, from what was seen."""
    data: Counter[int] = Counter()
    parameter: Counter[int] = Counter()
    num_shards = 1 + max((shard for _, _, shard in seen.pushed), default=0)
    for record in seen.records:
        for entry in record.entries:
            token = seen.tokens[entry.batch_id, entry.attempt]
            parts = [seen.pushed[entry.batch_id, entry.attempt, s] for s in range(num_shards)]
            own = seen.steps.get((entry.batch_id, entry.attempt), token.step)
            data[record.step - own] += 1
            parameter[record.step - min(part.pull_step for part in parts)] += 1
    return data, parameter
