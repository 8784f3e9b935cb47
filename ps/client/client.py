"""The worker's side of the shards: pulls and pushes of whole batches, fanned out and gathered.

One thread uses a client. `start_pull` and `start_push` send and return at once; `poll` reads what
has arrived and returns the requests that every shard has answered. Requests on a broken connection
are sent again on a new one: pulls read, and pushes are recognised by (batch id, attempt).
"""

import contextlib
import select
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ps.client.deduplicate import Deduplicated, keep_admitted
from ps.client.dense_copies import DenseCopies, DenseCopy
from ps.copies import Copies
from ps.messages.exchange import Refusal, Reply, Request
from ps.messages.pull_push import ANY_STEP, Contribution, Pull, PullReply
from ps.messages.records import Apply, DenseNorm, Entry, Freeze, Record
from ps.messages.wire import Header, WireError, array_sizes
from ps.net.cancellation import Cancellation
from ps.net.sockets import receive, send
from ps.routing import Routing
from ps.spec import StoreSpec
from runtime.free_list import FreeList

Connect = Callable[[int], socket.socket]

_RETRY_PAUSE_SECONDS = 0.2
# A connection that brought no answer and broke within this time did not end an outage.
_SHORT_LIVED_SECONDS = 1.0


class ShardLostError(ConnectionError):
    """A copy of a shard could not be reached again in time; `shard` is the copy's number."""

    def __init__(self, shard: int, seconds: float, cause: str, name: str | None = None) -> None:
        super().__init__(shard, seconds, cause, name)
        self.shard, self.seconds, self.cause = shard, seconds, cause
        self.name = name or f"shard {shard}"

    def __str__(self) -> str:
        lasted = f" for {self.seconds:.0f} s" if self.seconds >= 1 else ""
        return f"{self.name} could not be reached{lasted}: {self.cause}"


@dataclass(slots=True, eq=False)
class Open:
    """A request that was sent to copies of shards and is not answered by all yet; by number."""

    request_id: int
    messages: dict[int, Request]
    waiting: set[int]
    replies: dict[int, Reply] = field(default_factory=dict)
    kept: npt.NDArray[np.float32] | None = None  # gradients of admitted keys, where not all are

    @property
    def refusals(self) -> dict[int, Refusal]:
        return {s: reply for s, reply in self.replies.items() if isinstance(reply, Refusal)}

    @property
    def done(self) -> bool:
        return not self.waiting

    @property
    def buffer_bytes(self) -> int:
        """What its largest contribution takes in a shard's buffer."""
        pushed = (m.nbytes for m in self.messages.values() if isinstance(m, Contribution))
        return max(pushed, default=0)


@dataclass(slots=True, eq=False)
class PulledBatch(Open):
    """A pull of all keys of a batch, and where its parts go.

    Args:
        unique: the batch's distinct keys.
        values: float32, the flat buffer of rows.
        admitted: uint8[u], in the order of the keys.
        dense: float32[dense parameters], to be read only: where no shard sent any it is that of an
            earlier batch. Empty where they were not wanted.
        steps: int64[shards], the step each shard answered at.
        held: the dense parameters that the client had when it asked, None where not wanted.
        received: those of the answer, None until a shard sends a part.
        ahead: the shards whose dense parameters are of no step.
        recovery_epoch, routing: that it was asked in, which the batch's push has, too.
    """

    unique: Deduplicated = None  # type: ignore[assignment]
    values: npt.NDArray[np.float32] = None  # type: ignore[assignment]
    admitted: npt.NDArray[np.uint8] = None  # type: ignore[assignment]
    dense: npt.NDArray[np.float32] = None  # type: ignore[assignment]
    steps: npt.NDArray[np.int64] = None  # type: ignore[assignment]
    held: DenseCopy | None = None
    received: DenseCopy | None = None
    ahead: set[int] = field(default_factory=set)
    recovery_epoch: int = 0
    routing: Routing = None  # type: ignore[assignment]


@dataclass(slots=True)
class _Connection:
    """The connection to a shard; `lost_since` is when an outage began that it has yet to end."""

    sock: socket.socket
    since: float
    lost_since: float
    answered: bool = False

    @property
    def ended_outage(self) -> bool:
        return self.answered or time.monotonic() - self.since > _SHORT_LIVED_SECONDS


@dataclass(frozen=True, slots=True)
class Identity:
    """Which attempt at which batch a contribution belongs to."""

    mode_epoch: int
    batch_id: int
    attempt: int
    samples: int


class PsClient:
    """Connections to all copies of a job's shards; each is known by its number, see `Copies`.

    Attributes:
        heard: called with a copy whenever it has answered something.
        held_up_by: the copy that the thread is just sending to or connecting with.

    Args:
        spec: tables and dense parameters.
        connect: opens an authenticated connection to a copy of a shard.
        recovery_epoch: what every message carries.
        standbys: the shards that have a standby, which takes all that its primary does but pulls.
        retry_seconds: how long a copy may be out of reach.
        compress: whether frames are compressed.
        refused: called with a copy, and how, where nobody listens at its address: its process is
            gone. It may raise an error of its own, which ends what was going on.
        cancellation: once it is set, all that waits for a shard, and the next thing that would,
            raises CancelledError.
    """

    def __init__(
        self,
        spec: StoreSpec,
        connect: Connect,
        *,
        recovery_epoch: int,
        standbys: Sequence[int] = (),
        retry_seconds: float = 20.0,
        compress: bool = False,
        refused: Callable[[int, OSError], None] = lambda number, error: None,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.spec = spec
        self.copies = Copies(spec.num_shards, tuple(standbys))
        self.recovery_epoch = recovery_epoch
        self.routing = spec.routing
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard: Callable[[int], None] = lambda shard: None
        self.held_up_by: int | None = None
        self.waited_ns = 0  # by `poll`, with nothing to receive
        self._connect = connect
        self._retry_seconds = retry_seconds
        self._compress = compress
        self._refused = refused
        self._cancellation = cancellation or Cancellation()
        self._dims = np.array([table.dim for table in spec.tables], np.int64)
        self._dense = DenseCopies(self.routing)
        self._floats = FreeList(np.float32)
        self._bits = FreeList(np.uint8)
        self._open: dict[int, Open] = {}
        self._answered: list[Open] = []
        self._next_request = 0
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        try:
            for number in self.copies.numbers:
                self._reconnect(number, OSError("not connected yet"))
        except BaseException:
            self.close()
            raise

    def watch(self, sock: socket.socket) -> None:
        """Let `poll` return early when another socket of the caller becomes readable."""
        self._selector.register(sock, selectors.EVENT_READ, None)

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        for connection in self._connections.values():
            connection.sock.close()

    # Requests ---------------------------------------------------------------------------------

    def start_pull(
        self,
        unique: Deduplicated,
        *,
        at_step: int,
        not_before: int = ANY_STEP,
        for_step: int = ANY_STEP,
        evaluate: bool = False,
        dense: bool = True,
    ) -> PulledBatch:
        """Ask every shard for a batch's rows and the dense parameters; replies land in place.

        A shard leaves dense parameters out that the last answer brought already.

        Args:
            at_step, not_before, for_step: what is read, as of `ps.messages.pull_push.Pull`.
            evaluate: read as serving does, where nothing of the batch is counted.
        """
        request_id = self._new_id()
        held = self._dense.latest(self.recovery_epoch) if dense else None
        messages: dict[int, Request] = {}
        for shard in range(self.routing.num_shards):
            part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
            messages[shard] = Pull(
                request_id=request_id,
                recovery_epoch=self.recovery_epoch,
                routing_version=self.routing.version,
                at_step=at_step,
                table_sizes=tuple(unique.sizes[shard].tolist()),
                keys=unique.keys[part],
                counts=np.empty(0, np.uint32) if evaluate else unique.counts[part],
                dense=dense,
                dense_step=-1 if held is None else int(held.steps[shard]),
                dense_epoch=self.recovery_epoch,
                not_before=not_before,
                for_step=for_step,
            )
        pulled = PulledBatch(
            request_id,
            messages,
            set(messages),
            unique=unique,
            values=self._floats.take(int(unique.value_starts[-1])),
            admitted=self._bits.take(unique.keys.size),
            dense=np.empty(0, np.float32),
            steps=np.zeros(self.routing.num_shards, np.int64),
            held=held,
            recovery_epoch=self.recovery_epoch,
            routing=self.routing,
        )
        self._start(pulled)
        return pulled

    def start_push(
        self,
        pulled: PulledBatch,
        identity: Identity,
        *,
        gradients: npt.NDArray[np.float32],
        dense: npt.NDArray[np.float32],
        trained: npt.NDArray[np.uint8] | None = None,
    ) -> Open:
        """Send a batch's contribution to every shard, those without a key of it included.

        A standby gets what its primary gets, and the push is over once both have it.

        Its arrays, those of the pull included, must stay as they are until all have answered.

        Args:
            pulled: the batch's pull.
            identity: of the attempt.
            gradients: float32, sums of the rows' gradients, laid out as `pulled.values`.
            dense: float32[dense parameters], sums.
            trained: uint8[u], 0 for keys that get no gradient though they were admitted; never 1
                for others. None: `pulled.admitted`.
        """
        trained = pulled.admitted if trained is None else trained
        request_id = self._new_id()
        unique = pulled.unique
        kept = None if trained.all() else self._floats.take(gradients.size)
        messages: dict[int, Request] = {}
        for shard in range(self.routing.num_shards):
            part = slice(unique.key_starts[shard], unique.key_starts[shard + 1])
            values = slice(unique.value_starts[shard], unique.value_starts[shard + 1])
            sizes = unique.sizes[shard]
            admitted = trained[part]
            out = None if kept is None else kept[values]
            messages[shard] = Contribution(
                request_id=request_id,
                recovery_epoch=pulled.recovery_epoch,
                mode_epoch=identity.mode_epoch,
                routing_version=pulled.routing.version,
                batch_id=identity.batch_id,
                attempt=identity.attempt,
                samples=identity.samples,
                pull_step=int(pulled.steps[shard]),
                table_sizes=tuple(sizes.tolist()),
                keys=unique.keys[part],
                counts=unique.counts[part],
                gradients=keep_admitted(gradients[values], admitted, sizes, self._dims, out=out),
                dense=dense[slice(*pulled.routing.dense_range(shard))],
                admitted=admitted,
            )
        for shard in self.copies.standbys:
            messages[self.copies.standby_of(shard)] = messages[shard]
        push = Open(request_id, messages, set(messages), kept=kept)
        self._start(push)
        return push

    def send_again(self, request: Open) -> None:
        """Send an answered request again to the shards that refused it: the same messages."""
        request.waiting = set(request.refusals)
        for shard in request.waiting:
            del request.replies[shard]
        self._start(request, shards=sorted(request.waiting))

    def start_apply(self, shard: int, records: Sequence[Record]) -> Open:
        """Send records to one copy of a shard, as the coordinator does."""
        request_id = self._new_id()
        message = Apply(request_id, self.recovery_epoch, tuple(records))
        apply = Open(request_id, {shard: message}, {shard})
        self._start(apply)
        return apply

    def start_dense_norm(self, step: int, entries: tuple[Entry, ...], divisor: int) -> Open:
        """Ask every shard for its part of the norm of a step's dense gradient."""
        return self._start_at_all(
            DenseNorm(self._new_id(), self.recovery_epoch, step, entries, divisor)
        )

    def start_freeze(self, number: int, step: int, *, changed_only: bool) -> Open:
        """Have every shard keep its state of a step, in order behind the records sent before."""
        return self._start_at_all(
            Freeze(self._new_id(), self.recovery_epoch, number, step, changed_only)
        )

    def poll(self, timeout: float | None) -> list[Open]:
        """Wait at most `timeout` seconds for replies; return the requests now answered by all."""
        began = time.perf_counter_ns()
        ready = self._selector.select(0 if self._answered else timeout)
        self.waited_ns += time.perf_counter_ns() - began
        for key, _ in ready:
            if key.data is not None:
                self._receive_from(key.data)
        answered, self._answered = self._answered, []
        return answered

    def release(self, request: Open) -> None:
        """Use the arrays of an answered request again; nothing may read them any more.

        Those of requests that are not released are freed like any others.
        """
        if request.kept is not None:
            self._floats.give(request.kept)
        if isinstance(request, PulledBatch):
            self._floats.give(request.values)
            self._bits.give(request.admitted)
            if request.received is not None:
                self._dense.drop(request.received)

    def forget(self, request: Open) -> None:
        """Stop waiting for a request; late replies to it are dropped."""
        self._open.pop(request.request_id, None)
        self._answered = [answered for answered in self._answered if answered is not request]

    # Connections ------------------------------------------------------------------------------

    def _start_at_all(self, message: Request) -> Open:
        shards = range(self.routing.num_shards)
        request = Open(message.request_id, dict.fromkeys(shards, message), set(shards))
        self._start(request)
        return request

    def _new_id(self) -> int:
        self._next_request += 1
        return self._next_request

    def _start(self, request: Open, *, shards: Iterable[int] | None = None) -> None:
        self._cancellation.check()  # it may have been in the middle of a connection
        self._open[request.request_id] = request
        for shard in request.messages if shards is None else shards:
            try:
                self._send(self._connections[shard].sock, shard, request.messages[shard])
            except OSError as error:
                self._reconnect(shard, error)

    def _send(self, sock: socket.socket, shard: int, message: Request) -> None:
        """Send a message, receiving meanwhile.

        A shard that is sending us a large reply reads nothing until we have read that reply: if
        we only sent, both would wait for the other for ever.
        """

        def take_while_full() -> None:
            poll = select.poll()
            poll.register(sock, select.POLLIN | select.POLLOUT)
            if any(event & select.POLLIN for _, event in poll.poll()):
                self._take(sock, shard)

        self.held_up_by = shard
        sent = send(sock, message, compress=self._compress, when_full=take_while_full)
        self.held_up_by = None
        self.bytes_sent += sent

    def _receive_from(self, shard: int) -> None:
        try:
            self._take(self._connections[shard].sock, shard)
        except OSError as error:
            self._reconnect(shard, error)

    def _take(self, sock: socket.socket, shard: int) -> None:
        """Receive one reply; a request that it completes is kept for `poll`."""
        reply, nbytes = receive(sock, lambda header: self._places(shard, header))
        if not isinstance(reply, Reply):
            raise WireError(f"a {type(reply).__name__} is no reply")
        self.bytes_received += nbytes
        self._connections[shard].answered = True
        self.heard(shard)
        request = self._open.get(reply.request_id)
        if request is None or shard not in request.waiting:
            return
        request.replies[shard] = reply
        if isinstance(reply, PullReply) and isinstance(request, PulledBatch):
            request.steps[shard] = reply.step
            if reply.ahead:
                request.ahead.add(shard)
        request.waiting.discard(shard)
        if request.done:
            del self._open[request.request_id]
            if isinstance(request, PulledBatch) and not request.refusals and request.held:
                request.received = self._dense.completed(
                    request.held, request.received, request.ahead
                )
                request.dense = request.received.values
            self._answered.append(request)

    def _places(self, shard: int, header: Header) -> list[npt.NDArray[np.uint8]] | None:
        """Where the arrays of a pull's reply go: parts of the batch's own buffers."""
        if header.kind is not PullReply:
            return None
        request = self._open.get(header.scalars["request_id"])
        if not isinstance(request, PulledBatch) or shard not in request.waiting:
            return None
        unique = request.unique
        values = request.values[unique.value_starts[shard] : unique.value_starts[shard + 1]]
        dense = self._place_of_dense(request, shard, header)
        admitted = request.admitted[unique.key_starts[shard] : unique.key_starts[shard + 1]]
        places = [values.view(np.uint8), dense.view(np.uint8), admitted]
        if tuple(place.nbytes for place in places) != array_sizes(header):
            raise ConnectionError(f"shard {shard} answered a pull with arrays of other sizes")
        return places

    def _place_of_dense(
        self, pulled: PulledBatch, shard: int, header: Header
    ) -> npt.NDArray[np.float32]:
        """Return where a shard's dense parameters go; empty where it rightly sends none."""
        scalars = header.scalars
        if pulled.held is None or (
            scalars["step"] == pulled.held.steps[shard] and not scalars["ahead"]
        ):
            return np.empty(0, np.float32)
        if pulled.received is None:
            pulled.received = self._dense.new(pulled.steps, pulled.held.recovery_epoch)
        return pulled.received.values[slice(*pulled.routing.dense_range(shard))]

    def _reconnect(self, shard: int, cause: OSError) -> None:
        """Connect again and send again what that shard has not answered."""
        self.held_up_by = shard
        self._cancellation.check()
        lost_since = time.monotonic()
        old = self._connections.pop(shard, None)
        new_outage = old is None or old.ended_outage
        if old is not None:
            self._drop(old)
            if not new_outage:
                lost_since = old.lost_since
                self._cancellation.sleep(_RETRY_PAUSE_SECONDS)
        while new_outage or time.monotonic() - lost_since <= self._retry_seconds:
            new_outage = False
            try:
                self._connect_and_resend(shard, lost_since)
                return
            except OSError as error:
                cause = error
                if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                    self._refused(shard, error)
            failed = self._connections.pop(shard, None)
            if failed is not None:
                self._drop(failed)
                if failed.ended_outage:  # it was there, and broke while requests were sent again
                    lost_since = time.monotonic()
            self._cancellation.sleep(_RETRY_PAUSE_SECONDS)
        name = self.copies.name_of(shard)
        raise ShardLostError(shard, self._retry_seconds, str(cause), name) from cause

    def _connect_and_resend(self, shard: int, lost_since: float) -> None:
        sock = self._connect(shard)
        self._connections[shard] = _Connection(sock, time.monotonic(), lost_since)
        self._cancellation.hold(sock)
        for request in list(self._open.values()):
            if shard in request.waiting:
                self._send(sock, shard, request.messages[shard])
        self._selector.register(sock, selectors.EVENT_READ, shard)

    def _drop(self, connection: _Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.sock.close()
