"""A worker of the simulation: the real session, and what its three threads do, as events."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ps.client.client import Open
from ps.client.deduplicate import keep_admitted
from ps.client.dense_copies import DenseCopies, DenseCopy
from ps.copies import Copies
from ps.messages.exchange import Request
from ps.messages.pull_push import Contribution, Pull, PullReply
from simulation.data import DIM, Samples, Workload
from simulation.network import Client, Network
from simulation.scenario import Arrow
from simulation.world import Action, World, train_batch
from worker.protocol import Finished, Grant, Report, Token
from worker.session import Session

READ_SECONDS = 0.004
COMPUTE_SECONDS = 0.012
POLL_SECONDS = 0.03
HEARTBEAT_SECONDS = 0.2
ANSWER_SECONDS = 0.3
FULL_SECONDS = 0.01
LONG_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 3.0

Thread = Literal["main", "preparing"]
_THREADS: dict[Arrow, Thread] = {
    "batch read": "preparing",
    "pull sent": "main",
    "pull answered": "main",
    "computed": "main",
    "push sent": "main",
    "push acknowledged": "main",
}


class Employer(Protocol):
    """What a worker needs of the job around it."""

    def exchange(self, worker: "SimulatedWorker", report: Report) -> None:
        """Carry a report to the coordinator; `worker.answered` may follow."""

    def worker_read(
        self, worker: "SimulatedWorker", steps: Sequence[int], dense: npt.NDArray[np.float32]
    ) -> None:
        """All shards have answered a pull: with dense parameters of these steps; -1: of none."""

    def worker_ended(self, worker: "SimulatedWorker") -> None:
        """The process is gone, dead or told to stop."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pull that every shard has answered; see `ps.client.client.PulledBatch`."""

    values: npt.NDArray[np.float32]
    admitted: npt.NDArray[np.uint8]
    dense: DenseCopy
    steps: tuple[int, ...]


class SimulatedWorker:
    """One process: it reads ahead, pulls, computes and pushes one batch at a time, and reports.

    Args:
        slowness: what its working times are multiplied by.
    """

    dense_copies_class: type[DenseCopies] = DenseCopies

    def __init__(
        self,
        world: World,
        network: Network,
        workload: Workload,
        employer: Employer,
        session: Session,
        copies: Copies,
        *,
        slowness: float,
    ) -> None:
        self.session = session
        self.index, self.incarnation = session.worker, session.incarnation
        self.dead = False
        self._world = world
        self._workload = workload
        self._employer = employer
        self._slowness = slowness
        self._frozen_until = self._slow_until = 0.0
        self._hangs_until: dict[Thread, float] = {"main": 0.0, "preparing": 0.0}
        self._network = network
        self._client = self._new_client(copies)
        self._dense = self.dense_copies_class(workload.store.routing)
        self._inbox: deque[Open] = deque()
        self._computing = self._preparing = False
        self._to_prepare: list[Token] = []
        self._prepared: dict[Token, tuple[Samples, int]] = {}
        self._pulls: dict[int, tuple[Token, DenseCopy]] = {}
        self._pulled: dict[Token, Pulled] = {}
        self._pushes: dict[int, Finished] = {}
        self._asked: Report | None = None
        self._talks = 0

    def start(self) -> None:
        """Begin to report."""
        if not self._dies("started"):
            self._talk()

    @property
    def epoch(self) -> int:
        return self.session.recovery_epoch

    def told(self, session: Session, copies: Copies, workload: Workload) -> None:
        """The driver says that a recovery epoch has begun, and with it another session."""
        self._now(lambda: self._enter(session, copies, workload))

    def _new_client(self, copies: Copies) -> Client:
        return Client(
            self._network,
            copies,
            answered=self._request_answered,
            run=self._now,
            done=self.is_done,
        )

    def _enter(self, session: Session, copies: Copies, workload: Workload) -> None:
        """Drop what is of the old one; the dense parameters are known by their epoch."""
        if session.recovery_epoch <= self.epoch:
            return
        self._world.story.tell("%s enters recovery epoch %s", self, session.recovery_epoch)
        self.session = session
        if workload is not self._workload:  # shards have other parts now
            self._workload = workload
            self._dense = self.dense_copies_class(workload.store.routing)
        if copies.standbys or self._client.copies.standbys:  # others are where these were
            self._client.close()
            self._client = self._new_client(copies)
        else:
            self._client.begin_anew()
        for held in (self._inbox, self._to_prepare, self._prepared, self._pulled):
            held.clear()
        self._pulls.clear()
        self._pushes.clear()
        self._asked = None
        self._talk()

    def is_done(self, request: Open) -> bool:
        """Whether a pull or push is over."""
        return request.done

    # Life and time ----------------------------------------------------------------------------

    def die(self) -> None:
        """End at once; what was sent may still arrive."""
        if not self.dead:
            self.dead = True
            self._client.close()
            self._employer.worker_ended(self)

    def _dies(self, arrow: Arrow, token: Token | None = None) -> bool:
        """Cross an arrow; return whether the worker is dead after that."""
        world = self._world
        batch = None if token is None else train_batch(token)
        if not self.dead and world.kills_at(arrow):
            world.story.tell("%s dies at %r", self, arrow, batch=batch)
            self.die()
        if world.strikes("pause"):
            seconds = LONGEST_PAUSE_SECONDS * world.random.random() ** 2
            world.story.tell("%s freezes for %.2f s at %r", self, seconds, arrow, batch=batch)
            self._frozen_until = world.queue.now + seconds
        if arrow in _THREADS and (seconds := world.hangs_for()) > 0:
            world.story.tell("%s hangs for %.2f s at %r", self, seconds, arrow, batch=batch)
            self._hangs_until[_THREADS[arrow]] = world.queue.now + seconds
        if world.strikes("slow"):
            self._slow_until = world.queue.now + 0.5
        return self.dead

    def _later(self, seconds: float, action: Action) -> None:
        """Work for so long, then act, if still alive and not frozen."""
        slow = self._world.queue.now < self._slow_until or self._world.fleet_is_slow
        factor = 10.0 if slow else 1.0
        factor *= self._slowness * self._world.random.uniform(0.7, 1.3)
        self._world.queue.later(seconds * factor, lambda: self._now(action))

    def _now(self, action: Action) -> None:
        if self.dead:
            return
        if self._world.queue.now < self._frozen_until:
            self._world.queue.at(self._frozen_until, lambda: self._now(action))
            return
        action()

    def _hangs(self, thread: Thread, action: Action) -> bool:
        """Whether a thread hangs; where that ends, it goes on with the action."""
        until = self._hangs_until[thread]
        if self._world.queue.now >= until:
            return False
        if until < math.inf:
            self._world.queue.at(until, lambda: self._now(action))
        return True

    def __repr__(self) -> str:
        return f"worker {self.index}.{self.incarnation}"

    # The main thread --------------------------------------------------------------------------

    def _advance(self) -> None:
        while not (self.dead or self._computing or self._hangs("main", self._advance)):
            compute = self.session.next_compute()
            if compute is not None:
                samples, skipped = self._prepared[compute]
                pulled = self._pulled.pop(compute)
                self._computing = True
                work = partial(self._computed, self.session, compute, samples, skipped, pulled)
                long = self._workload.is_long(compute)
                self._later(LONG_SECONDS if long else COMPUTE_SECONDS, work)
                return
            pull = self.session.next_pull()
            if pull is not None:
                self._start_pull(pull)
            elif self._inbox:
                self._take(self._inbox.popleft())
            else:
                return

    def _start_pull(self, token: Token) -> None:
        unique = self._prepared[token][0].unique
        request_id = self._client.new_id()
        held = self._dense.latest(self.epoch)
        messages: dict[int, Request] = {}
        for shard in range(len(unique.sizes)):
            part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
            messages[shard] = Pull(
                request_id=request_id,
                recovery_epoch=self.epoch,
                routing_version=self._workload.store.routing.version,
                at_step=token.at_step,
                table_sizes=tuple(unique.sizes[shard].tolist()),
                keys=unique.keys[part],
                counts=unique.counts[part] if token.kind == "train" else np.empty(0, np.uint32),
                dense=True,
                dense_step=int(held.steps[shard]),
                dense_epoch=self.epoch,
                not_before=self.session.not_before(token),
                for_step=token.step,
            )
        self._pulls[request_id] = token, held
        self._world.story.tell("%s pulls %s", self, token, batch=train_batch(token))
        self._client.start(messages, survives=lambda: not self._dies("pull sent", token))

    def _request_answered(self, request: Open) -> None:
        self._inbox.append(request)
        self._advance()

    def _take(self, request: Open) -> None:
        reasons = {refusal.reason for refusal in request.refusals.values()}
        if reasons & {"epoch", "fenced"}:
            # Nothing of this session counts any more; the driver will say so.
            self._pulls.pop(request.request_id, None)
            self._pushes.pop(request.request_id, None)
            return
        if reasons and reasons <= {"full", "unheard"}:
            self._later(FULL_SECONDS, lambda: self._ask_shards_again(request))
            return
        if request.request_id in self._pulls:
            token, held = self._pulls.pop(request.request_id)
            if self._dies("pull answered", token):
                return
            if self._is_superseded(request, token) or not self.session.holds(token):
                return
            self._pulled[token] = self._gather(request, held)
            self.session.pulled(token)
            return
        finished = self._pushes.pop(request.request_id)
        if self._dies("push acknowledged", finished.token):
            return
        if not self._is_superseded(request, finished.token):
            self._finish(finished)

    def _ask_shards_again(self, request: Open) -> None:
        """Send what shards had no room for again, where it is still wanted."""
        if self._hangs("main", lambda: self._ask_shards_again(request)):
            return
        number = request.request_id
        if number in self._pulls:
            token, _ = self._pulls[number]
        elif number in self._pushes:
            token = self._pushes[number].token
        else:
            return  # it was of another recovery epoch
        if self.session.holds(token):
            self._client.start_again(request, survives=lambda: not self.dead)
        else:
            self._pulls.pop(number, None)
            self._pushes.pop(number, None)

    def _is_superseded(self, request: Open, token: Token) -> bool:
        for refusal in request.refusals.values():
            assert refusal.reason in ("superseded", "full", "unheard"), refusal.text
            self._finish(Finished(token, "superseded"))
            return True
        return False

    def _gather(self, request: Open, held: DenseCopy) -> Pulled:
        replies = [request.replies[shard] for shard in sorted(request.replies)]
        parts = [reply for reply in replies if isinstance(reply, PullReply)]
        steps = tuple(part.step for part in parts)
        dense = self._join_dense(parts, held)
        self._employer.worker_read(self, dense.steps.tolist(), dense.values)
        return Pulled(
            values=np.concatenate([part.values for part in parts]),
            admitted=np.concatenate([part.admitted for part in parts]),
            dense=dense,
            steps=steps,
        )

    def _join_dense(self, parts: list[PullReply], held: DenseCopy) -> DenseCopy:
        """Take the parts that a shard did not send from what was held, as `PsClient` does."""
        received = None
        routing = self._workload.store.routing
        for shard, part in enumerate(parts):
            if part.step != held.steps[shard] or part.ahead:
                if received is None:
                    steps = np.array([part.step for part in parts])
                    received = self._dense.new(steps, held.recovery_epoch)
                received.values[slice(*routing.dense_range(shard))] = part.dense
        ahead = [shard for shard, part in enumerate(parts) if part.ahead]
        return self._dense.completed(held, received, ahead)

    def _computed(
        self, session: Session, token: Token, samples: Samples, skipped: int, pulled: Pulled
    ) -> None:
        if not self._dies("computed", token):
            self._end(session, token, samples, skipped, pulled)

    def _end(
        self, session: Session, token: Token, samples: Samples, skipped: int, pulled: Pulled
    ) -> None:
        if self._hangs("main", lambda: self._end(session, token, samples, skipped, pulled)):
            return
        self._computing = False
        if session is self.session:
            self._use(token, samples, skipped, pulled)
        self._dense.drop(pulled.dense)
        self._advance()

    def _use(self, token: Token, samples: Samples, skipped: int, pulled: Pulled) -> None:
        n = samples.num_samples
        parameters = pulled.dense.values
        if token.kind == "eval":
            scores = self._workload.evaluate(samples, pulled.values, parameters)
            self._finish(Finished(token, "done", n, skipped, evaluation=scores))
        elif not self._workload.is_finite(token):
            self._finish(Finished(token, "skipped", 0, n + skipped, "non_finite"))
        else:
            loss, gradients, dense = self._workload.train(samples, pulled.values, parameters)
            finished = Finished(
                token,
                "done",
                samples=n,
                skipped=skipped,
                reason="bad_file" if skipped else None,
                loss_sum=loss,
                pull_step=min(pulled.steps),
                seconds=COMPUTE_SECONDS,
                buffer_bytes=1,
            )
            self._start_push(finished, samples, pulled, gradients, dense)

    def _start_push(
        self,
        finished: Finished,
        samples: Samples,
        pulled: Pulled,
        gradients: npt.NDArray[np.float32],
        dense: npt.NDArray[np.float32],
    ) -> None:
        token, unique = finished.token, samples.unique
        request_id = self._client.new_id()
        messages: dict[int, Request] = {}
        for shard in range(len(unique.sizes)):
            part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
            values = slice(unique.value_starts[shard], unique.value_starts[shard + 1])
            sizes, admitted = unique.sizes[shard], pulled.admitted[part]
            dims = np.full(sizes.size, DIM)
            messages[shard] = Contribution(
                request_id=request_id,
                recovery_epoch=self.epoch,
                mode_epoch=token.mode_epoch,
                routing_version=self._workload.store.routing.version,
                batch_id=token.batch_id,
                attempt=token.attempt,
                samples=finished.samples,
                pull_step=pulled.steps[shard],
                table_sizes=tuple(sizes.tolist()),
                keys=unique.keys[part],
                counts=unique.counts[part],
                gradients=keep_admitted(gradients[values], admitted, sizes, dims),
                dense=dense[slice(*self._workload.store.routing.dense_range(shard))],
                admitted=admitted,
            )
        copies = self._client.copies
        for shard in copies.standbys:
            messages[copies.standby_of(shard)] = messages[shard]
        self._pushes[request_id] = finished
        self._world.story.tell("%s pushes %s", self, token, batch=train_batch(token))
        self._client.start(messages, survives=lambda: not self._dies("push sent", token))

    def _finish(self, finished: Finished) -> None:
        self.session.finished(finished)
        self._forget_dropped()
        if self._asked is None:
            self._talk()

    def _forget_dropped(self) -> None:
        for token in [t for t in self._prepared if not self.session.holds(t)]:
            del self._prepared[token]
        for token in [t for t in self._pulled if not self.session.holds(t)]:
            del self._pulled[token]

    # The preparing thread ---------------------------------------------------------------------

    def _prepare(self) -> None:
        while self._to_prepare and not self._preparing:
            token = heapq.heappop(self._to_prepare)
            if self.session.holds(token):
                self._preparing = True
                self._later(READ_SECONDS, partial(self._read, self.session, token))

    def _read(self, session: Session, token: Token) -> None:
        if not self._dies("batch read", token):
            self._has_read(session, token)

    def _has_read(self, session: Session, token: Token) -> None:
        if self._hangs("preparing", lambda: self._has_read(session, token)):
            return
        self._preparing = False
        if session is self.session:
            self._take_batch(token)
        self._prepare()
        self._advance()

    def _take_batch(self, token: Token) -> None:
        samples, skipped = self._workload.read(token)
        if samples is None:
            self._finish(Finished(token, "skipped", 0, skipped, "bad_file"))
        elif self.session.holds(token):
            self._prepared[token] = samples, skipped
            self.session.prepared(token)

    # The talking thread -----------------------------------------------------------------------

    def _talk(self) -> None:
        """Send a report now, unless an answer is awaited."""
        self._talks += 1
        if self._asked is None and not self.dead:
            self._ask(self.session.report())

    def _ask(self, report: Report) -> None:
        self._asked = report
        if self._dies("report sent"):
            return
        self._employer.exchange(self, report)
        if not self._dies("report sent"):
            self._later(ANSWER_SECONDS, lambda: self._ask_again(report))

    def _ask_again(self, report: Report) -> None:
        """The answer is overdue: the transport repeats the call, or the worker makes a new one."""
        if self._asked is report:
            same = self._world.random.random() < 0.5
            self._ask(report if same else self.session.report())

    def answered(self, grant: Grant) -> None:
        """An answer has come to this machine."""
        self._now(lambda: self._take_grant(grant))

    def _take_grant(self, grant: Grant) -> None:
        if self._dies("grant received"):
            return
        tokens = self.session.granted(grant)
        own = grant.recovery_epoch == self.epoch
        assert own or not tokens, f"{self} takes tokens of another recovery epoch: {grant}"
        self._forget_dropped()
        for token in tokens:
            heapq.heappush(self._to_prepare, token)
        if self.session.stopped:
            self.die()
            return
        self._prepare()
        self._advance()
        names = grant.recovery_epoch, grant.sequence
        if self._asked is not None and names == (self._asked.recovery_epoch, self._asked.sequence):
            self._asked = None
            self._talk_again(nothing_new=not tokens)

    def _talk_again(self, *, nothing_new: bool) -> None:
        """Report at once where there is news, else after a while."""
        session = self.session
        wants = session.want > 0 or session.waiting
        if session.has_news or (wants and not nothing_new):
            self._talk()
            return
        self._talks += 1
        talks = self._talks
        seconds = POLL_SECONDS if wants else HEARTBEAT_SECONDS
        self._later(seconds, lambda: self._talk() if talks == self._talks else None)
