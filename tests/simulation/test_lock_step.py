"""Under lock-step, where nothing is late, modes with global batches give the same bits."""

from typing import Any

import numpy as np
import pytest

from ps.client.deduplicate import keep_admitted
from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.records import Apply
from ps.shard.shard import Shard
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.events import Answer, RecordsApplied, SendRecords, WorkerReported
from scheduler.coordinator.modes.rules import Mode, ModeOptions, PlannedShift
from scheduler.coordinator.modes.stale_weights import Inverse, Power
from scheduler.coordinator.spec import CoordinatorSpec, CutOptions
from simulation.data import DIM, Workload
from simulation.engine import run
from simulation.scenario import Faults, Scenario
from simulation.verdict import digest_of
from worker.protocol import Finished, Report, Token

SCENARIO = Scenario(seed=3, group_size=3, batch_size=4, batches_per_epoch=11, epochs=3, last_rows=2)
WORKERS = 3


class LockStep:
    """As many workers as a step has batches: all pull, then all push and report in their order."""

    def __init__(
        self, mode: Mode, options: ModeOptions, shifts: tuple[PlannedShift, ...] = ()
    ) -> None:
        self._workload = Workload(SCENARIO, shards=1)
        self._coordinator = Coordinator(
            CoordinatorSpec(
                store=self._workload.store, plan=SCENARIO.plan, evaluation_plan=None, mode=mode,
                shifts=shifts, options=options, group_size=SCENARIO.group_size,
                global_batch=SCENARIO.global_batch, workers=WORKERS, depth=1,
            )
        )  # fmt: skip
        self._shard = Shard(self._workload.store, 0)
        self._shard.initialize(0, dense=self._workload.initial_dense)
        self._sequence = 0

    def train(self) -> str:
        """Train to the end; return the digest of the model."""
        while not self._coordinator.trained:
            given = [token for worker in range(WORKERS) for token in self._ask(worker, want=1)]
            # The last step of an epoch has fewer; what is of the next one must wait.
            held = [token for token in sorted(given) if token.step == self._coordinator.step]
            for token, pulled in [(token, self._pull(token)) for token in held]:
                self._ask(0, self._push(token, pulled))
        return digest_of([self._shard])

    def _ask(self, worker: int, *finished: Finished, want: int = 0) -> tuple[Token, ...]:
        self._sequence += 1
        tokens: tuple[Token, ...] = ()
        report = Report(worker, 0, self._sequence, finished=finished, want=want)
        for command in self._coordinator.handle(WorkerReported(report), 0.0):
            if isinstance(command, Answer):
                tokens = command.grant.tokens
            elif isinstance(command, SendRecords):
                self._shard.handle(Apply(0, 0, command.records), 0)
                self._coordinator.handle(RecordsApplied(0, self._shard.step), 0.0)
        return tokens

    def _pull(self, token: Token) -> PullReply:
        samples, _ = self._workload.read(token)
        assert samples is not None
        unique = samples.unique
        message = Pull(
            0, 0, 0, token.at_step, tuple(unique.sizes[0].tolist()), unique.keys, unique.counts,
            True,
        )  # fmt: skip
        (outgoing,) = self._shard.handle(message, 0)
        assert isinstance(outgoing.reply, PullReply)
        return outgoing.reply

    def _push(self, token: Token, pulled: PullReply) -> Finished:
        samples, _ = self._workload.read(token)
        assert samples is not None
        unique, n = samples.unique, samples.num_samples
        _, gradients, dense = self._workload.train(samples, pulled.values, pulled.dense)
        sizes = unique.sizes[0]
        kept = keep_admitted(gradients, pulled.admitted, sizes, np.full(sizes.size, DIM))
        self._shard.handle(
            Contribution(
                0, 0, 0, 0, token.batch_id, token.attempt, n, pulled.step,
                table_sizes=tuple(sizes.tolist()), keys=unique.keys, counts=unique.counts,
                gradients=kept, dense=dense, admitted=pulled.admitted,
            ),
            0,
        )  # fmt: skip
        return Finished(token, "done", samples=n, pull_step=pulled.step)


@pytest.mark.parametrize(
    "options",
    [
        {"staleness_bound": 0},
        {"staleness_bound": 0, "on_stale": "reissue"},
        {"staleness_bound": 0, "stale_weight": Power(base=0.5)},
        {"stale_weight": Inverse()},
    ],
    ids=str,
)
def test_gba_is_bit_identical_to_sync_where_nothing_is_late(options: dict[str, Any]) -> None:
    gba = LockStep("gba", ModeOptions(**options)).train()

    assert gba == LockStep("sync", ModeOptions()).train()


@pytest.mark.parametrize("first", [1, 3, 4, 7])
@pytest.mark.parametrize("last", [8, 10])
def test_shifts_where_nothing_is_late_change_no_bit(first: int, last: int) -> None:
    """Slots, learning rates, schedules and the order of the samples are those of sync."""
    there, back = PlannedShift(at=first, mode="gba"), PlannedShift(at=last, mode="sync")
    options = ModeOptions(staleness_bound=0)

    shifted = LockStep("sync", options, (there, back)).train()

    assert shifted == LockStep("sync", options).train()


def test_lock_step_gives_the_model_of_the_whole_simulation() -> None:
    simulated = run(3, **{
        name: getattr(SCENARIO, name)
        for name in SCENARIO.__dataclass_fields__ if name not in ("seed", "workers")
    }, workers=WORKERS)  # fmt: skip

    assert LockStep("sync", ModeOptions()).train() == simulated.digest


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize("mode", ["gba", "backup", "ssp"])
def test_a_job_survives_a_time_in_which_the_whole_fleet_is_slow(mode: Mode, bound: int) -> None:
    """The simulation itself fails where nothing is applied for long."""
    faults = Faults(fleet_slow=(0.05, 1.5), slow=0.1, delay=0.1, lose=0.05, until=3.0)
    options = ModeOptions(staleness_bound=bound, on_stale="reissue", ssp_slack=0)

    outcomes = [
        run(
            seed, mode=mode, mode_options=options, workers=4, group_size=3, batches_per_epoch=12,
            epochs=2, limit=None, max_seconds=None, faults=faults, cuts=CutOptions(),
        )
        for seed in range(6)
    ]  # fmt: skip

    assert all(outcome.batches == 24 for outcome in outcomes)
    assert all(outcome.dropped == 0 for outcome in outcomes)
