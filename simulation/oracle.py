"""What each step has to be made of, worked out from tokens and reports alone."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ps.messages.pull_push import ANY_STEP
from ps.messages.records import Record
from scheduler.coordinator.modes.rules import Mode
from scheduler.coordinator.modes.stale_weights import Cutoff, Power
from simulation.scenario import Scenario
from worker.protocol import Finished, Token

Attempt = tuple[int, int]


@dataclass(slots=True)
class Expected:
    """A step as it has to be.

    Args:
        entries: (batch, attempt, weight), in the order of summation.
        skipped: batches that are resolved without being used.
        reasons: samples that are skipped with this step, by reason.
        discards: attempts that became void since the step before.
    """

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=lambda: Counter())
    discards: set[Attempt] = field(default_factory=set)


class Oracle:
    """Says what each step of a scenario is, from the order in which attempts ended.

    Args:
        tokens: of training, by (batch, attempt), as they are given out.
        first_step: of the recovery epoch.
        resolved: batches that were resolved before it.
        mode: that it begins in.
        steps: that changes of mode gave to attempts before it.
    """

    def __init__(
        self,
        scenario: Scenario,
        tokens: Mapping[Attempt, Token],
        *,
        first_step: int,
        resolved: Collection[int],
        mode: Mode,
        steps: Mapping[Attempt, int],
    ) -> None:
        self.mode: Mode = mode
        # Steps that a change of mode gave to attempts, and those that it gives to fresh batches.
        self.steps: dict[Attempt, int] = dict(steps)
        self.planned = _planned(scenario, first_step, resolved)
        self._scenario = scenario
        self._tokens = tokens
        # Whether an attempt was void because it lasted too long.
        self.has_given_up = False
        # When attempts were given out: the step that was formed next, and the one that all shards
        # had reached. And how many steps an attempt lasts, by the step that comes next.
        self._given_at: dict[Attempt, tuple[int, int]] = {}
        self._attempt_steps: dict[int, int] = {}
        # Ends that no step has looked at: (k when it was reported, end).
        self._reported: list[tuple[int, Finished]] = []
        self._ended: dict[int, Finished] = {}
        self._resolved = set(resolved)
        self._void: set[Attempt] = set()
        self._void_since_last_step: set[Attempt] = set()

    def given(self, token: Token, *, step: int, applied_step: int) -> None:
        """An attempt is given out before a step is formed."""
        self._given_at[token.batch_id, token.attempt] = step, applied_step

    def lasts(self, attempt_steps: int, *, step: int) -> None:
        """When a step came up, attempts lasted so many steps."""
        self._attempt_steps[step] = attempt_steps
        self.has_given_up = self.has_given_up or bool(self._too_old(step))

    def oldest_step(self, step: int) -> int:
        """Return the step before which no attempt was given out that can end, as a step came up."""
        return step - self._attempt_steps[step]

    def reported(self, finished: Finished, *, step: int) -> bool:
        """Take the end of an attempt, reported when so many steps had been formed.

        Returns:
            Whether it is the first of its batch.
        """
        known = {end.token.batch_id for _, end in self._reported} | set(self._ended)
        self._reported.append((step, finished))
        return finished.token.batch_id not in known | self._resolved

    def step(self, record: Record) -> Expected:
        """Return what a record has to be."""
        step = record.step
        newly_void = self._look_for_void(step) | self._void_since_last_step
        self._void_since_last_step = set()
        self._take_reports(step)
        eligible = [end for end in self._ended.values() if self._may_be_in(step, end)]
        left_out = [end for end in eligible if end.token.batch_id in record.skipped]
        size = len(record.entries) + len(left_out)
        if size not in self._sizes():
            return Expected()
        chosen = eligible[:size]
        if self.mode in ("sync", "backup"):
            chosen.sort(key=lambda end: end.token.batch_id)
        expected = Expected(discards=newly_void)
        for end in chosen:
            batch_id, attempt = end.token.batch_id, end.token.attempt
            del self._ended[batch_id]
            self._resolved.add(batch_id)
            used = end.samples if end.outcome == "done" else 0
            expected.reasons[end.reason or ""] += self._scenario.rows_of(batch_id) - used
            if end.outcome == "done":
                weight = self.weight(step - self.step_of(end.token))
                expected.entries.append((batch_id, attempt, weight))
            else:
                expected.skipped.append(batch_id)
        return expected

    def _sizes(self) -> set[int]:
        """Return how many batches the next step may have.

        Where time is limited it is not known from when on nothing fresh was given out, only that
        everything that was given out is trained.
        """
        scenario = self._scenario
        if self.mode in ("async", "ssp"):
            return {1}
        ends = {scenario.plan.total}
        if scenario.ends_early:
            ends.add(1 + max((batch_id for batch_id, _ in self._tokens), default=0))
        first = self._epoch * scenario.batches_per_epoch
        sizes = set()
        for end in ends:
            batches = range(first, min(first + scenario.batches_per_epoch, end))
            left = sum(batch_id not in self._resolved for batch_id in batches)
            sizes.add(min(scenario.group_size, left))
        return sizes

    def weight(self, staleness: int) -> float:
        """What a contribution weighs."""
        options = self._scenario.mode_options
        if self.mode != "gba":
            return 1.0
        late = staleness - options.staleness_bound
        rule = options.stale_weight
        if isinstance(rule, Cutoff):
            return float(late <= 0)
        if isinstance(rule, Power):
            return float(np.float32(rule.base**late)) if late > 0 else 1.0
        return float(np.float32(1 / staleness)) if staleness > 1 else 1.0

    def is_void(self, token: Token, step: int) -> bool:
        """Whether an attempt can't count at step k and later, whatever becomes of it."""
        if (token.batch_id, token.attempt) in self._void:
            return True
        options = self._scenario.mode_options
        if self.mode == "backup":
            return token.step < step
        again = self.mode == "gba" and options.on_stale == "reissue"
        return again and self.weight(step - self.step_of(token)) == 0

    def step_of(self, token: Token) -> int:
        """Return the step of a batch that was given out, as it is since the last change of mode."""
        return self.steps.get((token.batch_id, token.attempt), token.step)

    def shifted(self, mode: Mode, step: int) -> None:
        """The mode changes before step k is formed.

        The batches that are not resolved are lined up anew, those of an epoch by their ids. Where
        steps are read that they belong to, those that ended with a pull of step k go first, and
        only these stay; else only what waits for a later step goes.
        """
        self._void_since_last_step |= self._look_for_void(step)
        self._take_reports(step)
        self.mode = mode
        if mode == "sync":
            first = {b for b, end in self._ended.items() if self._was_pulled_at(end, step)}
        else:
            first = set()
        self._line_up(step, first)
        for identity, token in self._tokens.items():
            if identity[0] not in self._resolved:
                self.steps[identity] = self.planned[identity[0]]
                if not self._may_stay(token, step):
                    self._void_since_last_step |= {identity} - self._void
                    self._void.add(identity)
        for batch_id in [b for b, end in self._ended.items() if self._is_voided(end.token)]:
            del self._ended[batch_id]

    def _line_up(self, step: int, first: set[int]) -> None:
        scenario = self._scenario
        size = 1 if self.mode == "async" else scenario.group_size
        for epoch in range(self._epoch, scenario.epochs):
            start = epoch * scenario.batches_per_epoch
            batches = range(start, min(start + scenario.batches_per_epoch, scenario.plan.total))
            left = [batch_id for batch_id in batches if batch_id not in self._resolved]
            left.sort(key=lambda batch_id: (batch_id not in first, batch_id))
            for place, batch_id in enumerate(left):
                self.planned[batch_id] = step + place // size
            step += -(-len(left) // size)

    def _may_stay(self, token: Token, step: int) -> bool:
        end = self._ended.get(token.batch_id)
        if self.mode == "sync":
            return end is not None and self._was_pulled_at(end, self.planned[token.batch_id])
        return end is not None or self._latest(token.batch_id).at_step <= step

    def _was_pulled_at(self, end: Finished, step: int) -> bool:
        return end.outcome == "skipped" or end.pull_step == step

    def _is_voided(self, token: Token) -> bool:
        return (token.batch_id, token.attempt) in self._void

    def _latest(self, batch_id: int) -> Token:
        """Return the attempt that was given out last, unless it is void."""
        attempts = [token for (b, _), token in self._tokens.items() if b == batch_id]
        token = max(attempts, key=lambda token: token.attempt)
        return replace(token, at_step=ANY_STEP) if self._is_voided(token) else token

    @property
    def _epoch(self) -> int:
        low_water = 0
        while low_water in self._resolved:
            low_water += 1
        return low_water // self._scenario.batches_per_epoch

    def _may_be_in(self, step: int, end: Finished) -> bool:
        mode, token = self.mode, end.token
        if mode in ("sync", "backup"):
            return self.step_of(token) == step
        open_epoch = token.batch_id // self._scenario.batches_per_epoch == self._epoch
        return open_epoch if mode == "gba" else True

    def _take_reports(self, step: int) -> None:
        """Take the first end of each batch that counts; ends of void attempts don't."""
        later: list[tuple[int, Finished]] = []
        for reported_at, end in self._reported:
            batch_id = end.token.batch_id
            if reported_at > step:
                later.append((reported_at, end))
            elif batch_id in self._ended or batch_id in self._resolved:
                continue
            elif not self.is_void(end.token, reported_at):
                self._ended[batch_id] = end
        self._reported = later

    def _too_old(self, step: int) -> set[Attempt]:
        """Return what was given out of batches whose first attempt that counts is too old."""
        if step not in self._attempt_steps:
            return set()  # the first one
        known = {a: at for a, at in self._given_at.items() if at[0] < step and a not in self._void}
        first: dict[int, int] = {}
        for (batch_id, _), (_, applied_step) in sorted(known.items()):
            first.setdefault(batch_id, applied_step)
        return {attempt for attempt in known if first[attempt[0]] < self.oldest_step(step)}

    def _look_for_void(self, step: int) -> set[Attempt]:
        """Return the attempts that became void as step k came up, and forget their ends."""
        self._take_reports(step - 1)
        too_old = self._too_old(step)
        gone: set[Attempt] = set()
        for identity, token in self._tokens.items():
            batch_id = identity[0]
            end = self._ended.get(batch_id)
            if batch_id in self._resolved:
                continue
            has_failed = end is not None and end.outcome == "skipped"
            is_void = self.is_void(token, step) and not (self.mode == "gba" and has_failed)
            if not is_void and (identity not in too_old or end is not None):
                continue
            gone.add(identity)
            if end is not None and end.token.attempt == token.attempt:
                del self._ended[batch_id]
        newly = gone - self._void
        self._void |= gone
        return newly


def _planned(scenario: Scenario, step: int, resolved: Collection[int]) -> dict[int, int]:
    """Return the step of each batch as synchronous training from `step` on has it."""
    planned: dict[int, int] = {}
    for epoch in range(scenario.epochs):
        start = epoch * scenario.batches_per_epoch
        whole = range(start, min(start + scenario.batches_per_epoch, scenario.plan.total))
        batches = [batch_id for batch_id in whole if batch_id not in resolved]
        for place, batch_id in enumerate(batches):
            planned[batch_id] = step + place // scenario.group_size
        step += -(-len(batches) // scenario.group_size)
    return planned


class Paces:
    """How many batches each worker has ended, counted on from the slowest one when it joined."""

    def __init__(self) -> None:
        self._ended: dict[tuple[int, int], int] = {}

    def joined(self, worker: tuple[int, int], live: Sequence[tuple[int, int]]) -> None:
        """A worker is heard of, perhaps for the first time."""
        if worker not in self._ended:
            self._ended[worker] = self._slowest([other for other in live if other != worker])

    def ended(self, worker: tuple[int, int]) -> None:
        self._ended[worker] += 1

    def lead(self, worker: tuple[int, int], live: Sequence[tuple[int, int]]) -> int:
        """Return how many more batches a worker has ended than the slowest live one."""
        return self._ended[worker] - self._slowest(live)

    def _slowest(self, live: Sequence[tuple[int, int]]) -> int:
        # Of those that are heard of together, the later ones have no count yet.
        return min((self._ended[worker] for worker in live if worker in self._ended), default=0)
