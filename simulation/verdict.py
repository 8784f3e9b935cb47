"""What must hold of all shards when a recovery epoch of a simulated job begins, and at its end."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from embedding import CounterEntries, TableEntries
from ps.checkpoint.digest import block_digests, digests_of_shard, shards_digest
from ps.routing import Routing
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from simulation.cuts import snapshot_of
from simulation.referee import require
from simulation.resizing import misplaced
from simulation.saved import SavedJob
from simulation.scenario import Scenario
from simulation.seen import Seen, staleness


def digest_of(shards: list[Shard]) -> str:
    """Return the digest of the model that shards hold together."""
    routing = shards[0].routing
    tables = [digests_of_shard(shard.tables, routing, at) for at, shard in enumerate(shards)]
    return shards_digest(routing, tables, [block_digests(shard.dense) for shard in shards])


def check_begun(shards: list[Shard], standbys: Mapping[int, Shard], routing: Routing) -> None:
    """Each key has one owner by the routing of all, and whose copies hold the same."""
    wrong = misplaced(shards)
    require(not wrong, "keys that not exactly the shard of their bucket has: {}", wrong[:4])
    routings = {shard.routing for shard in (*shards, *standbys.values())}
    require(routings == {routing}, "copies of shards go by {} routings", len(routings))
    _check_standbys(shards, standbys)


def _check_standbys(shards: list[Shard], standbys: Mapping[int, Shard]) -> None:
    for index, standby in standbys.items():
        same = snapshot_of(standby.tables, standby.dense.rows) == snapshot_of(
            shards[index].tables, shards[index].dense.rows
        )
        require(same, "shard {} and its standby hold other states", index)


def logs_the_end(shard: Shard, seen: Seen) -> bool:
    """Whether a shard logs the last of the records that it was sent, and as they were sent."""
    first = shard.step - len(shard.log)
    return first >= seen.first_step and seen.records_between(first, shard.step) == list(shard.log)


def check_ended(
    scenario: Scenario,
    seen: Seen,
    coordinator: Coordinator,
    shards: list[Shard],
    standbys: Mapping[int, Shard] = MappingProxyType({}),
    *,
    earlier: SavedJob | None = None,
    histories: bool = True,
) -> None:
    """Everything is accounted for and nothing is left behind.

    Args:
        standbys: of shards.
        histories: whether the coordinator knows all of them; one that was made again does not.
    """
    copies = [*shards, *standbys.values()]
    steps = [shard.step for shard in copies]
    require(steps == [seen.step] * len(copies), "shards ended at steps {}", steps)
    _check_standbys(shards, standbys)
    for shard in copies:
        log = logs_the_end(shard, seen)
        require(log, "shard {} has another log than was sent", shard.index)
        left = (len(shard.buffer), shard.buffer.nbytes, shard.num_parked)
        require(left == (0, 0, 0), "shard {} still holds {}", shard.index, left)
    _check_samples(scenario, seen, coordinator)
    if histories:
        _check_staleness(scenario, seen, coordinator)
    _check_frequencies(seen, shards, scenario.min_count, earlier)


def _check_samples(scenario: Scenario, seen: Seen, coordinator: Coordinator) -> None:
    """Each batch that was given out is applied once or skipped, and so is each of its samples."""
    given = {batch_id for batch_id, _ in seen.tokens}
    total = max(given, default=-1) + 1
    require(given == set(range(total)), "batches below {} were left out: {}", total, sorted(given))
    if not scenario.ends_early:
        require(
            total == scenario.plan.total, "{} of {} batches were used", total, scenario.plan.total
        )
    applied = [entry for record in seen.records for entry in record.entries]
    skipped = [batch_id for batches in seen.skipped.values() for batch_id in batches]
    ended = sorted([entry.batch_id for entry in applied] + skipped)
    require(ended == list(range(total)), "each of {} batches has to end once: {}", total, ended)
    used = dropped = 0
    for entry in applied:
        samples_of = seen.pushed[entry.batch_id, entry.attempt, 0].samples
        used += samples_of if entry.weight > 0 else 0
        dropped += samples_of if entry.weight == 0 else 0
    planned = sum(map(scenario.rows_of, range(total)))
    samples = coordinator.ledger.samples
    counted = (samples.applied, samples.dropped, samples.skipped)
    right = (used, dropped, planned - used - dropped)
    require(counted == right, "the samples are {}, not {}", right, counted)
    by_reason = sum(samples.skipped_by_reason.values())
    known = by_reason == samples.skipped and "unknown" not in samples.skipped_by_reason
    require(known, "reasons are missing: {}", samples.skipped_by_reason)


def _check_staleness(scenario: Scenario, seen: Seen, coordinator: Coordinator) -> None:
    data, parameter = staleness(seen)
    require(dict(data) == coordinator.data_staleness.counts, "data staleness is {}", data)
    counts = coordinator.parameter_staleness.counts
    require(dict(parameter) == counts, "parameter staleness is {}, not {}", parameter, counts)
    if scenario.mode in ("sync", "backup") and not scenario.shifts:
        late = set(data) | set(parameter)
        require(late <= {0}, "staleness in a job that waits: {}, {}", data, parameter)


def _check_frequencies(
    seen: Seen, shards: list[Shard], min_count: int, earlier: SavedJob | None
) -> None:
    """In a table without eviction every occurrence in an applied batch is counted, by key.

    What weighs nothing is not counted and changes no version.
    """
    frequency: Counter[int] = Counter()
    version: dict[int, int] = {}
    if earlier is not None:
        table = earlier.store.tables[0]
        known: list[TableEntries | CounterEntries] = [
            *earlier.rows(table), *earlier.counters(table)
        ]  # fmt: skip
        for entries in known:
            frequency.update(_by_key(entries.keys, entries.frequency))
            version.update(_by_key(entries.keys, entries.version))
    for record in seen.records:
        for entry in [entry for entry in record.entries if entry.weight > 0]:
            for index in range(len(shards)):
                part = seen.pushed[entry.batch_id, entry.attempt, index]
                keys = part.keys[: part.table_sizes[0]].tolist()
                for key, count in zip(keys, part.counts.tolist(), strict=False):
                    frequency[key] += count
                    version[key] = record.step
    for shard in shards:
        rows, counters = shard.tables[0].export(), shard.tables[0].export_counters()
        early = rows.keys[rows.frequency < min_count].tolist()
        require(not early, "keys {} have rows and were seen less than {} times", early, min_count)
        for held in (rows, counters):
            for key, count, step in zip(
                held.keys.tolist(), held.frequency.tolist(), held.version.tolist(), strict=True
            ):
                right = (frequency.pop(key, 0), version.get(key))
                require(
                    (count, step) == right, "key {}: {}, expected {}", key, (count, step), right
                )
    require(not frequency, "keys without row and counter: {}", frequency)


def _by_key(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(keys.tolist(), values.tolist(), strict=True))
