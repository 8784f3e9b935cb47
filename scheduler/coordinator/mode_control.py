"""The mode that a job is in: its rule, its changes, and the policy that may ask for them."""

from dataclasses import dataclass, replace

from ps.messages.pull_push import ANY_STEP
from scheduler.coordinator.ledger import Ledger
from scheduler.coordinator.modes.policy import Prediction, SwitchPolicy
from scheduler.coordinator.modes.rules import Mode, rule_of
from scheduler.coordinator.modes.shift import Shift, Wish, shift
from scheduler.coordinator.spec import CoordinatorSpec
from worker.protocol import Finished

# An adaptive optimizer's sums of squares have so many terms then that one more changes the learning
# rates by a fortieth. Before, the gradients that are largest by far, those of stale parameters,
# would stay in them for good: docs/gba-experiments.md, E7.
STEPS_IN_SYNC = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeState:
    """What goes on from one coordinator to the next of the modes of a job.

    Args:
        mode, epoch: that it is in, and how often it has changed.
        automatic: whether the policy decides.
        shifts: the changes so far.
    """

    mode: Mode
    epoch: int = 0
    automatic: bool = False
    shifts: tuple[Shift, ...] = ()


class ModeControl:
    """Rule, history and policy of a job's modes.

    Args:
        spec: of the job.
        state: to go on from, at `clock` ticks after the job's start; None: it begins.
    """

    def __init__(
        self, spec: CoordinatorSpec, state: ModeState | None = None, *, clock: int = 0
    ) -> None:
        state = state or ModeState(mode=spec.mode, automatic=spec.automatic)
        self.rule = rule_of(state.mode, spec.options)
        self.epoch = state.epoch
        self.shifts = list(state.shifts)
        self.policy: SwitchPolicy | None = None
        self.prediction: Prediction | None = None
        self._spec = spec
        self._settles = spec.settles and not self.shifts
        self._planned = [planned for planned in spec.shifts if planned.at > clock]
        self.set_automatic(state.automatic)

    def state(self) -> ModeState:
        """Return what another one needs to go on from here; what the policy saw it sees anew."""
        return ModeState(
            mode=self.rule.name,
            epoch=self.epoch,
            automatic=self.automatic,
            shifts=tuple(self.shifts),
        )

    @property
    def automatic(self) -> bool:
        """Whether the policy decides."""
        return self.policy is not None

    def set_automatic(self, automatic: bool) -> None:
        """Let the policy decide from now on, or nobody but people."""
        self.policy = self.prediction = None
        if automatic:
            spec = self._spec
            self.policy = SwitchPolicy(
                spec.policy,
                group_size=spec.group_size,
                global_batch=spec.global_batch,
                depth=spec.depth,
            )

    def shift(
        self,
        wish: Wish,
        ledger: Ledger,
        *,
        step: int,
        seconds: float,
        now: float,
    ) -> bool:
        """Go on in a mode; return whether it is another one.

        Args:
            step: that comes next.
            seconds: of training so far.
        """
        before = self.rule.name
        if wish.mode == before:
            return False
        self.rule = rule_of(wish.mode, self._spec.options)
        self.epoch += 1
        self._settles = False
        reissued = shift(ledger, self.rule, step=step)
        predicted = self.prediction if wish.cause == "policy" else None
        self.shifts.append(
            Shift(
                step=step,
                samples=ledger.samples.applied,
                seconds=seconds,
                from_mode=before,
                to_mode=wish.mode,
                cause=wish.cause,
                reason=wish.reason,
                reissued=reissued,
                sync_rate=None if predicted is None else predicted.sync_rate,
                gba_rate=None if predicted is None else predicted.gba_rate,
            )
        )
        if self.policy is not None:
            self.policy.shifted(now)
        return True

    def planned(self, clock: int) -> Wish | None:
        """Return, once, the change that the job file plans for so many ticks after its start."""
        wish = None
        while self._planned and self._planned[0].at <= clock:
            planned = self._planned.pop(0)
            wish = Wish(planned.mode, "job", f"planned at {planned.at} global batches")
        return wish

    def formed(self, step: int) -> Wish | None:
        """A step is ordered: return, once, that the job need not be in `sync` any more.

        Args:
            step: that comes next.
        """
        if not self._settles or step < self._spec.start.step + STEPS_IN_SYNC:
            return None
        self._settles = False
        return None if self.automatic else Wish("gba", "job", f"begun with {step} steps of sync")

    def applied(self, step: int, *, seconds: float, now: float) -> None:
        """Every shard has reached a step, after so many seconds of training."""
        if self.policy is not None:
            self.policy.step_applied(now)
        last = self.shifts[-1] if self.shifts else None
        if last is not None and last.seconds_to_next_step is None and step > last.step:
            self.shifts[-1] = replace(last, seconds_to_next_step=seconds - last.seconds)

    # What the policy is told ------------------------------------------------------------------

    def leased(self, worker: int, ledger: Ledger, now: float) -> None:
        """A worker was given a batch."""
        if self.policy is not None and len(ledger.leased_to(worker)) == 1:
            self.policy.working(worker, now=now)

    def finished(self, worker: int, finished: Finished, now: float) -> None:
        """A worker has ended a batch."""
        if self.policy is not None:
            self.policy.finished(
                worker, samples=finished.samples, seconds=finished.seconds, now=now
            )

    def gone(self, worker: int) -> None:
        """A worker is lost or has left."""
        if self.policy is not None:
            self.policy.gone(worker)

    def advice(self, ledger: Ledger, now: float, *, applied_step: int, held: bool) -> Wish | None:
        """Return the mode that the policy wants instead of this one, and why; None: it is content.

        Args:
            held: whether training is: then nobody works as fast as it could.
        """
        mode = self.rule.name
        if self.policy is None or (mode != "sync" and mode != "gba"):
            return None
        if held:
            self.policy.resumed(now)
            return None
        verdict = self.policy.look(
            now,
            mode=mode,
            samples_applied=ledger.samples.applied,
            apply_rate=None,
            busy=self._busy(ledger, applied_step) if self.policy.is_due(now) else (),
        )
        if verdict is None:
            return None
        self.prediction = verdict.prediction
        target = verdict.shift_to
        if target == "gba" and self._settles:
            return None
        return None if target is None else Wish(target, "policy", verdict.reason)

    def _busy(self, ledger: Ledger, applied_step: int) -> set[int]:
        """Workers that hold a batch which they can compute now."""
        return {
            batch.worker
            for batch in ledger.outstanding()
            if batch.worker is not None
            and self.rule.at_step(batch.step) in (ANY_STEP, applied_step)
        }
