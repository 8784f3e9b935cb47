"""The worker's threads around its session: one computes, one prepares, one talks.

The main thread pulls, computes and pushes; it waits on the shards' sockets and on a wake-up
socket. The preparing thread reads and de-duplicates ahead. The talking thread exchanges reports
for tokens and is the heartbeat, so a long computation does not look like a death.
"""

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from embedding.kernels.finite import all_finite
from ps.client.client import Identity, Open, PsClient, PulledBatch
from ps.client.prefetcher import Prefetcher
from ps.messages.pull_push import ANY_STEP
from ps.net.cancellation import Cancellation, CancelledError
from ps.net.wake import Wake
from runtime.fingerprint import check_float_mode
from runtime.memory import peak_rss_bytes
from runtime.priority import give_way
from runtime.process_figures import ProcessFigures
from runtime.stage_times import StageTimes
from worker.awaiting import Awaiting
from worker.data.arrived import BatchRows
from worker.data.batch import Batch
from worker.faults import Faults, HangStage
from worker.pipeline_depth import PipelineDepth
from worker.protocol import Coordinator, Evaluation, Finished, Token, TokenKind
from worker.session import Session
from worker.step.choosing import choose_rows
from worker.step.computing import Beginning, Computation, Float32s, Trained
from worker.step.preparing import Prepared, Preparer
from worker.step.scoring import scores_of

# Of the preparing thread: read, deduplicate. Of the main thread: sending pulls and receiving rows
# (pull), waiting while a pull is open (wait_rows), for a batch that is being prepared (wait_batch),
# for the coordinator (wait_lease), computing, checking and sending gradients (push).
STAGES = ("read", "deduplicate", "pull", "wait_rows", "forward", "backward", "push", "evaluate",
          "wait_batch", "wait_lease")  # fmt: skip


Ending = Literal["stopped", "left", "outdated"]
"""How a loop ends that does not fail: told so by the coordinator, by `leave`, or by finding that
the job is in another recovery epoch."""

# How long what a worker leaves may take to end. Where it reads a slow store it ends by itself.
_LEAVE_SECONDS = 0.2
_STOP_SECONDS = 5.0


class RefusedError(RuntimeError):
    """A shard refused a message for a reason that another try would not change."""


class DeadShardError(RefusedError):
    """A shard that failed in the midst of a step refuses everything."""


class NonFiniteGradientError(ValueError):
    """A batch gave an infinite or undefined gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """Times and choices of a worker's loop.

    Args:
        heartbeat_seconds: the longest pause between two reports.
        poll_seconds: the shortest pause between two reports while tokens are wanted and none came.
        full_seconds: the pause before a shard that had no room is asked again.
        unheard_seconds: that before one is asked again that does not hear its coordinator.
        on_non_finite: what a non-finite gradient does: `fail` the job or `skip` the batch.
        progressive: whether every training batch is scored as it was predicted.
        any_float_mode: whether batches are prepared and computed in an unusual float mode too.
        prepares_ahead: whether what is prepared is not needed yet, so that it gives way to all else
            on the machine; samples of a stream are waited for.
    """

    heartbeat_seconds: float = 1.0
    poll_seconds: float = 0.05
    full_seconds: float = 0.02
    unheard_seconds: float = 0.2
    on_non_finite: Literal["fail", "skip"] = "fail"
    any_float_mode: bool = False
    progressive: bool = False
    prepares_ahead: bool = True

    def pause_seconds(self, waited: float) -> float:
        """Return the pause between two reports of who has waited so long for tokens: an eighth."""
        return min(max(self.poll_seconds, waited / 8), self.heartbeat_seconds)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prepared batch, and how many of its planned samples could not be read."""

    prepared: Prepared
    skipped: int


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch that is computed.

    Args:
        prepared, trained: its keys, and which of them are, see `choose_rows`.
        started: when, as `time.perf_counter()`.
        nanoseconds: that this thread took to begin it.
    """

    token: Token
    prepared: Prepared
    trained: npt.NDArray[np.uint8] | None
    skipped: int
    pulled: PulledBatch
    beginning: Beginning
    started: float
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class _Pushed:
    """A batch whose push is not answered yet, and its arrays: they may have to be sent again."""

    finished: Finished
    prepared: Prepared
    pulled: PulledBatch
    gradients: Float32s
    dense: Float32s


ReadBatch = Callable[[int], tuple[Batch, int]]


class WorkerLoop:
    """Runs one worker until the coordinator says stop, or its recovery epoch is over.

    Args:
        session: the worker's tokens.
        coordinator: takes reports.
        client: to the shards; used by the main thread only.
        prefetcher: is told what will be pulled; None: nothing of it is on disk.
        readers: for each kind of token, reads a batch and says how many samples were skipped.
        rows_granted: is told of the rows of batches that are to be read, in a job whose plan grows.
        preparer: used by the preparing thread only.
        computation: the model.
        faults: what befalls it on purpose.
        cancellation: that client and coordinator work under: the loop is to be left.
    """

    def __init__(
        self,
        *,
        session: Session,
        coordinator: Coordinator,
        client: PsClient,
        readers: dict[TokenKind, ReadBatch],
        rows_granted: Callable[[tuple[BatchRows, ...]], None] = lambda rows: None,
        preparer: Preparer,
        computation: Computation,
        options: LoopOptions,
        faults: Faults,
        cancellation: Cancellation | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self._cancellation = cancellation or Cancellation()
        self._session = session
        self._coordinator = coordinator
        self._client = client
        self._prefetcher = prefetcher
        self._readers = readers
        self._rows_granted = rows_granted
        self._preparer = preparer
        self._computation = computation
        self._options = options
        self._faults = faults
        self._times = StageTimes(*STAGES)
        self._depth = PipelineDepth(session.depth)
        self._computed_at = (time.perf_counter(), 0.0)  # and what was waited for batches till then
        self._cpu_seconds_before = 0.0
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._to_prepare: queue.PriorityQueue[Token] = queue.PriorityQueue()
        self._prepared: dict[Token, _Ready] = {}
        self._pulls: dict[int, Token] = {}
        self._pulled: dict[Token, PulledBatch] = {}
        self._begun: deque[_Begun] = deque()  # several where a device computes them
        self._awaiting = Awaiting(
            lambda batch: self._computation.await_end(batch), ended=self._wake, failed=self._fail
        )
        self._ended_at = 0.0
        self._pushes: dict[int, _Pushed] = {}
        self._put_off: list[tuple[float, Open]] = []  # what shards can't do yet, and until when
        self._failure: BaseException | None = None
        self._ended = False
        self._wakes = Wake()
        client.watch(self._wakes.sock)

    def run(self) -> Ending:
        """Work until told to end; raises what any of the threads raised."""
        self._cpu_seconds_before = time.process_time()
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._talk, self._prepare)
        ]
        for thread in threads:
            thread.start()
        try:
            while self._failure is None and self._ending is None:
                self._advance()
        except CancelledError:
            pass
        finally:
            self._end()
            over = self._ending in ("left", "outdated")
            limit = _LEAVE_SECONDS if over else _STOP_SECONDS
            for thread in threads:
                thread.join(timeout=limit)
            self._awaiting.close()
            self._client.close()
            if self._prefetcher is not None:
                self._prefetcher.close()
            self._coordinator.close()
            self._wakes.close()
        ending = self._ending
        # What fails in an epoch that is over is not wanted any more.
        if self._failure is not None and ending in (None, "stopped"):
            raise self._failure
        assert ending is not None, "one of the two ends it"
        return ending

    @property
    def _ending(self) -> Ending | None:
        """What ends the loop, if anything but a failure does."""
        if self._cancellation.is_set:
            return "left"
        if self._session.outdated:
            return "outdated"
        return "stopped" if self._session.stopped else None

    def _end(self) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._to_prepare.put(Token(step=-1, batch_id=-1, attempt=0, at_step=0))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._fail(error)
        finally:
            self._wake()

    def _fail(self, error: BaseException) -> None:
        self._failure = error

    def _wake(self) -> None:
        self._wakes.set()

    # The main thread --------------------------------------------------------------------------

    def _advance(self) -> None:
        if self._begun and self._is_first_due():
            self._end_first()
            return
        with self._lock:
            compute = self._session.next_compute()
            pull = None if compute is not None else self._session.next_pull()
            token = compute or pull
            # Taken under the lock: a token may be revoked at any other time.
            prepared = self._prepared[token] if token is not None else None
            pulled = self._pulled.pop(compute) if compute is not None else None
        if compute is not None and prepared is not None and pulled is not None:
            self._compute(compute, prepared, pulled)
        elif pull is not None and prepared is not None:
            self._start_pull(pull, prepared)
        else:
            self._receive()

    def _receive(self) -> None:
        """Wait for answers of shards or for a wake-up, and take what has come."""
        limit = self._options.heartbeat_seconds
        if self._put_off:
            limit = min(limit, self._send_again())
        waiting_for = "backward" if self._begun else "wait_rows"
        if not self._begun and not self._pulls:
            waiting_for = "wait_batch" if self._session.preparing else "wait_lease"
        began, waited = time.perf_counter_ns(), self._client.waited_ns
        for request in self._client.poll(limit):
            self._answered(request)
        self._wakes.clear()
        waited = self._client.waited_ns - waited
        self._times.add(waiting_for, waited)
        self._times.add("pull", time.perf_counter_ns() - began - waited)

    def _start_pull(self, token: Token, ready: _Ready) -> None:
        with self._times.measure("pull"):
            pulled = self._client.start_pull(
                ready.prepared.unique,
                at_step=token.at_step,
                not_before=self._session.not_before(token),
                for_step=token.step,
                evaluate=token.kind == "eval",
            )
        self._pulls[pulled.request_id] = token

    def _answered(self, request: Open) -> None:
        reasons = {refusal.reason for refusal in request.refusals.values()}
        if reasons and reasons <= {"full", "unheard"}:
            options = self._options
            pause = options.unheard_seconds if "unheard" in reasons else options.full_seconds
            self._put_off.append((time.monotonic() + pause, request))
            return
        if isinstance(request, PulledBatch):
            token = self._pulls.pop(request.request_id)
            if self._superseded(request, token):
                return
            with self._lock:
                if self._session.holds(token):
                    self._pulled[token] = request
                    self._session.pulled(token)
        else:
            pushed = self._pushes.pop(request.request_id)
            self._computation.give_back(pushed.gradients, pushed.dense)
            self._client.release(request)
            self._release(pushed.prepared, pushed.pulled)
            if not self._superseded(request, pushed.finished.token):
                self._finish(pushed.finished)

    def _send_again(self) -> float:
        """Send again what shards could not do yet, once it is due; return when the next is due.

        The same messages: what a batch contributes is computed once. One that is not wanted any
        more is let go.
        """
        now = time.monotonic()
        due = [request for at, request in self._put_off if at <= now]
        self._put_off = [(at, request) for at, request in self._put_off if at > now]
        for request in due:
            number = request.request_id
            pushed = self._pushes.get(number)
            token = self._pulls[number] if pushed is None else pushed.finished.token
            with self._lock:
                wanted = self._session.holds(token)
            if wanted:
                self._client.send_again(request)
            else:
                self._pulls.pop(number, None)
                self._pushes.pop(number, None)
        return min((at - now for at, _ in self._put_off), default=self._options.full_seconds)

    def _superseded(self, request: Open, token: Token) -> bool:
        if not request.refusals:
            return False
        for refusal in request.refusals.values():
            if refusal.reason in ("epoch", "fenced"):
                self._session.outdated = True
                return True
            if refusal.reason == "dead":
                raise DeadShardError(refusal.text)
            if refusal.reason not in ("superseded", "full", "unheard"):
                raise RefusedError(refusal.text)
        self._finish(Finished(token, "superseded"))
        return True

    def _finish(self, finished: Finished) -> None:
        with self._news:
            self._session.finished(finished)
            self._forget_dropped()
            self._news.notify_all()

    def _forget_dropped(self) -> None:
        """Drop the arrays of tokens that ended or were revoked. The lock is held."""
        for held in (self._prepared, self._pulled):
            for token in [t for t in held if not self._session.holds(t)]:
                del held[token]

    def _compute(self, token: Token, ready: _Ready, pulled: PulledBatch) -> None:
        if token.kind == "train" and self._faults.dies_at(token.step):
            os.kill(os.getpid(), signal.SIGKILL)
        self._hang_if_due(token, "compute")
        started = time.perf_counter()
        with self._times.measure("forward"):
            prepared, trained = choose_rows(ready.prepared, pulled.admitted)
        skipped = ready.skipped
        if token.kind == "eval":
            with self._times.measure("evaluate"):
                evaluation = self._evaluate(prepared, pulled)
            self._release(prepared, pulled)
            self._finish(
                Finished(token, "done", prepared.num_samples, skipped, evaluation=evaluation)
            )
            return
        began = time.perf_counter_ns()
        beginning = self._computation.begin(prepared, pulled.values, pulled.dense, token.batch_id)
        taken = time.perf_counter_ns() - began
        self._begun.append(
            _Begun(token, prepared, trained, skipped, pulled, beginning, started, taken)
        )
        if self._computation.most_begun == 1:
            self._end_first()
        else:
            self._awaiting.add(beginning)

    def _is_first_due(self) -> bool:
        """Whether the first batch that was begun has ended, or no other can be begun before."""
        if len(self._begun) >= self._computation.most_begun:
            return True
        return self._computation.has_ended(self._begun[0].beginning)

    def _end_first(self) -> None:
        """Push what came of the batch that was begun first."""
        begun = self._begun.popleft()
        token, prepared, pulled = begun.token, begun.prepared, begun.pulled
        skipped = begun.skipped
        loss, gradients, dense = self._end_training(begun)
        # One that was begun beside another has this device since that one ended.
        started, now = max(begun.started, self._ended_at), time.perf_counter()
        time.sleep(self._faults.pause(now - started, time.time()))
        self._ended_at = time.perf_counter()
        seconds = self._ended_at - started
        planned = prepared.num_samples + skipped
        with self._times.measure("push"):
            finite = all_finite(gradients) and all_finite(dense)
        if not finite:
            if self._options.on_non_finite == "fail":
                raise NonFiniteGradientError(
                    f"batch {token.batch_id} gave a gradient that is not finite (loss {loss})."
                    " Lower the learning rate, check the dense columns for huge values, or set"
                    " training.on_non_finite=skip to leave such batches out"
                )
            self._computation.give_back(gradients, dense)
            self._release(prepared, pulled)
            self._finish(Finished(token, "skipped", 0, planned, "non_finite"))
            return
        identity = Identity(token.mode_epoch, token.batch_id, token.attempt, prepared.num_samples)
        with self._times.measure("push"):
            push = self._client.start_push(
                pulled, identity, gradients=gradients, dense=dense, trained=begun.trained
            )
        self._adapt_depth()
        finished = Finished(
            token,
            "done",
            buffer_bytes=push.buffer_bytes,
            samples=prepared.num_samples,
            skipped=skipped,
            reason="bad_file" if skipped else None,
            loss_sum=loss,
            pull_step=int(pulled.steps.min()),
            seconds=seconds,
            evaluation=self._predicted(prepared, pulled) if self._options.progressive else None,
            started_at=time.time() - (time.perf_counter() - started),
        )
        self._pushes[push.request_id] = _Pushed(finished, prepared, pulled, gradients, dense)

    def _hang_if_due(self, token: Token, stage: HangStage) -> None:
        """On purpose, for ever: in the thread that does this stage."""
        if token.kind == "train" and self._faults.hangs_at(token.step, stage):
            threading.Event().wait()

    def _release(self, prepared: Prepared, pulled: PulledBatch) -> None:
        """Use a batch's arrays again. Those of a batch that is dropped before are just freed."""
        self._client.release(pulled)
        self._preparer.give_back(prepared)

    def _adapt_depth(self) -> None:
        now, waited = time.perf_counter(), self._times.seconds()["wait_batch"]
        (before, waited_before), self._computed_at = self._computed_at, (now, waited)
        with self._lock:
            self._session.depth = self._depth.computed(now - before, waited - waited_before)

    def _end_training(self, begun: _Begun) -> Trained:
        began = time.perf_counter_ns()
        result = self._computation.end(begun.beginning)
        taken = begun.nanoseconds + time.perf_counter_ns() - began
        forward = self._computation.forward_ns
        self._times.add("forward", forward)
        self._times.add("backward", taken - forward)
        return result

    def _evaluate(self, prepared: Prepared, pulled: PulledBatch) -> Evaluation:
        logits = self._computation.predict(prepared, pulled.values, pulled.dense)
        return scores_of(logits, prepared)

    def _predicted(self, prepared: Prepared, pulled: PulledBatch) -> Evaluation:
        """Scores of the batch that was trained last, by the rows that were pulled for it."""
        with self._times.measure("evaluate"):
            logits = self._computation.trained_logits(prepared, pulled.values, pulled.dense)
            return scores_of(logits, prepared)

    # The preparing thread ---------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._options.prepares_ahead:
            give_way()  # what it prepares is not needed yet
        while True:
            token = self._to_prepare.get()
            if self._ended:
                return
            with self._lock:
                wanted = self._session.holds(token)
            if not wanted:
                continue
            if not self._options.any_float_mode:
                check_float_mode()
            self._hang_if_due(token, "read")
            began = time.perf_counter()
            with self._times.measure("read"):
                batch, skipped = self._readers[token.kind](token.batch_id)
            if batch.num_samples == 0:
                self._finish(Finished(token, "skipped", 0, skipped, "bad_file"))
                self._wakes.set()
                continue
            with self._times.measure("deduplicate"):
                prepared = self._preparer(batch)
            if self._prefetcher is not None:
                self._prefetch(self._prefetcher, token, prepared)
            with self._lock:
                self._depth.prepared(time.perf_counter() - began)
                if self._session.holds(token):
                    self._prepared[token] = _Ready(prepared, skipped)
                    self._session.prepared(token)
            self._wakes.set()

    def _prefetch(self, prefetcher: Prefetcher, token: Token, prepared: Prepared) -> None:
        """Say what will be pulled, unless it is at once: it would be read twice side by side."""
        with self._lock:
            waits = self._session.is_busy or token.at_step != ANY_STEP
        if waits:
            batch_id = token.batch_id if token.kind == "train" else -1
            prefetcher.tell(prepared.unique, batch_id=batch_id, attempt=token.attempt)

    # The talking thread -----------------------------------------------------------------------

    def _talk(self) -> None:
        last_news = time.monotonic()
        while not self._ended:
            with self._lock:
                report = self._session.report(
                    ProcessFigures(
                        peak_rss_bytes=peak_rss_bytes(),
                        bytes_sent=self._client.bytes_sent,
                        bytes_received=self._client.bytes_received,
                        cpu_seconds=time.process_time() - self._cpu_seconds_before,
                        stage_seconds=self._times.seconds(),
                    )
                )
            grant = self._coordinator.exchange(report)
            with self._news:
                tokens = self._session.granted(grant)
                self._forget_dropped()
            self._rows_granted(grant.rows)
            for token in tokens:
                self._to_prepare.put(token)
            self._wakes.set()  # the answer may set a pull free
            if self._ending is not None:
                return
            if tokens or report.finished:
                last_news = time.monotonic()
            self._pause(last_news, nothing_new=not tokens)

    def _pause(self, last_news: float, *, nothing_new: bool) -> None:
        """Wait until there is something to say, at most until the next heartbeat."""
        with self._news:
            started, options = time.monotonic(), self._options
            pause = options.pause_seconds(started - last_news)
            while not self._ended and not self._session.has_news:
                wants = self._session.want > 0 or self._session.waiting
                limit = pause if wants else options.heartbeat_seconds
                left = started + limit - time.monotonic()
                if left <= 0 or (wants and not nothing_new):
                    return
                self._news.wait(min(left, options.poll_seconds))
