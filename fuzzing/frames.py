"""Frames of the data and control planes, and the handshake before them.

What can be decoded goes on to a shard or a coordinator as it would in a job: one whose bytes were
changed may say anything that a peer who knows the secret could say.
"""

import dataclasses
import socket
import struct
from collections.abc import Callable
from random import Random
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import numpy as np

from embedding.optimizers.rule import step_scalars
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.optimizers import Adagrad, Adam
from embedding.spec.table import TableSpec
from fuzzing.mutations import EDGES, changed_value, damaged
from fuzzing.run import Target, WrongResultError
from ps.messages import exchange
from ps.messages.exchange import Refusal
from ps.messages.pull_push import ANY_STEP, Contribution, Prefetch, Pull
from ps.messages.records import Apply, DenseNorm, Entry, Freeze, Record, TableEviction
from ps.messages.wire import MAGIC, PREFIX, encode
from ps.net.sockets import prove_as_client, prove_as_server, receive
from ps.shard.prefetching import prefetch
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from runtime.typed import array_dtype
from scheduler.coordinator.coordinator import Coordinator
from scheduler.coordinator.coordinator_state import CoordinatorState
from scheduler.coordinator.events import RecordsApplied, SendRecords, WorkerReported
from scheduler.coordinator.ledger_plan import LedgerPlan
from scheduler.coordinator.spec import CoordinatorSpec
from worker.control_wire import receive_grant, receive_report, send_message
from worker.protocol import Grant, Report
from worker.session import Session

STORE = StoreSpec(
    tables=(
        TableSpec(name="counted", dim=3, admission=CounterAdmission(min_count=2)),
        TableSpec(name="adam", dim=2, optimizer=Adam()),
        TableSpec(
            name="filtered",
            dim=2,
            admission=BloomAdmission(
                min_count=2, max_elements=4096, false_positive_probability=0.05
            ),
        ),
    ),
    dense_size=5,
    dense_optimizer=Adagrad(),
    num_shards=1,
)


class Line:
    """One end of a connection whose other end has sent some bytes and gone."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_into(self, view: memoryview) -> int:
        taken = self._data[: view.nbytes]
        view[: len(taken)] = taken
        self._data = self._data[len(taken) :]
        return len(taken)


class _Kept:
    """The other way: what was sent."""

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        self.data += data


# Messages of every kind ---------------------------------------------------------------------------


def any_of(hint: Any, rng: Random) -> Any:
    """Return a value of an annotation, as `runtime.typed` decodes them."""
    origin, args = get_origin(hint), get_args(hint)
    dtype = array_dtype(hint)
    if dtype is not None:
        array = np.frombuffer(rng.randbytes(dtype.itemsize * rng.randrange(5)), dtype.str)
        return array % 2 if dtype == np.bool_ else array
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{f.name: any_of(hints[f.name], rng) for f in dataclasses.fields(hint)})
    if origin is Literal:
        return rng.choice(args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return tuple(any_of(args[0], rng) for _ in range(rng.randrange(4)))
        return tuple(any_of(item, rng) for item in args)
    if origin is dict:
        return {any_of(args[0], rng): any_of(args[1], rng) for _ in range(rng.randrange(3))}
    if origin in (Union, UnionType):
        return any_of(rng.choice(args), rng)
    if hint is int:
        return rng.choice([n for n in EDGES if -(2**63) <= n < 2**63])
    if hint is str:
        return rng.choice(("", "read", "push", "é" * 20))
    return {float: 0.25, bool: rng.random() < 0.5, type(None): None, Any: None}[hint]


def steps_of_a_shard() -> list[Any]:
    """Messages that take a new shard through three steps, one of every kind for each."""
    found: list[Any] = []
    rng = np.random.default_rng(0)
    for step in range(3):
        sizes = (20, 10, 15)
        keys = np.concatenate([rng.permutation(100)[:n] for n in sizes]).astype(np.int64)
        counts = rng.integers(1, 4, keys.size).astype(np.uint32)
        # Of the tables that admit keys which occur twice, the others are counted only.
        admitted = (counts > 1).astype(np.uint8)
        admitted[20:30] = 1
        num_values = int(np.repeat((3, 2, 2), sizes) @ admitted)
        names = {"request_id": step, "recovery_epoch": 0, "routing_version": 0}
        found.append(
            Pull(**names, at_step=ANY_STEP, table_sizes=sizes, keys=keys, counts=counts, dense=True)
        )
        found.append(
            Contribution(
                **names,
                mode_epoch=0,
                batch_id=step,
                attempt=0,
                samples=4,
                pull_step=step,
                table_sizes=sizes,
                keys=keys,
                counts=counts,
                gradients=rng.normal(size=(num_values,)).astype(np.float32),
                dense=rng.normal(size=5).astype(np.float32),
                admitted=admitted,
            )
        )
        record = Record(
            step,
            recovery_epoch=0,
            mode_epoch=0,
            entries=(Entry(step, 0, 1.0),),
            divisor=4,
            scalars=tuple(
                step_scalars(o, learning_rate=o.learning_rate, step=step) for o in STORE.optimizers
            ),
            evict=(TableEviction(0, min_version=step - 1, rows_per_bucket=3),),
            discard=((step, 1),),
        )
        norm = DenseNorm(step, recovery_epoch=0, step=step, entries=record.entries, divisor=4)
        found += [norm, Apply(request_id=step, recovery_epoch=0, records=(record,))]
        found.append(Freeze(step, 0, number=step + 1, step=step + 1, changed_only=step > 0))
    return found


def new_shard() -> Shard:
    shard = Shard(STORE, 0, max_contributions=64, max_buffer_bytes=1 << 20)
    shard.initialize(0, dense=np.zeros(5, np.float32))
    return shard


# The data plane -----------------------------------------------------------------------------------

_NEW_STATE_AFTER = 500
_OF_EACH_KIND = 40


class DataFrames:
    """Frames to a shard that has made some steps."""

    def __init__(self) -> None:
        self._known = [self._bytes_of(message) for message in steps_of_a_shard()]
        rng = Random(0)
        self._others = [
            self._bytes_of(any_of(kind, rng), compress=rng.random() < 0.3)
            for kind in get_args(exchange.Message)
            for _ in range(_OF_EACH_KIND)
        ]
        self._shard = new_shard()
        for message in steps_of_a_shard():  # kernels are compiled, which takes memory
            self._shard.handle(message, "known")
        self._handled = 0

    def target(self) -> Target:
        return Target("data-frames", self.make, self.read, (OSError,))

    def make(self, rng: Random) -> bytes:
        frame = rng.choice(self._known if rng.random() < 0.5 else self._others)
        if rng.random() < 0.4:
            return damaged(frame, rng, self._known)
        return self._changed_header(frame, rng)

    def read(self, frame: bytes) -> str:
        message, nbytes = receive(Line(frame))  # type: ignore[arg-type]
        if nbytes > len(frame):
            raise WrongResultError(f"{nbytes} bytes were read of {len(frame)}")
        sent_on = self._bytes_of(message)
        again, _ = receive(Line(sent_on))  # type: ignore[arg-type]
        if self._bytes_of(again) != sent_on:
            raise WrongResultError(f"{message} is {again} when it is sent on")
        if isinstance(message, get_args(exchange.Request)):
            return self._handled_by_shard(message)
        if isinstance(message, Prefetch):
            return f"prefetched {prefetch(self._shard, message, 0, message.keys.size)}"
        return type(message).__name__

    def _handled_by_shard(self, message: Any) -> str:
        self._handled += 1
        if self._handled % _NEW_STATE_AFTER == 1 or self._shard.dead or self._shard.num_parked > 60:
            self._shard = new_shard()
            for known in steps_of_a_shard():
                if self._handled % 2 or not isinstance(known, Apply):
                    self._shard.handle(known, "known")
        before = self._shard.step, self._shard.buffer.nbytes
        replies = [each.reply for each in self._shard.handle(message, "fuzzing")]
        after = self._shard.step, self._shard.buffer.nbytes
        if replies and isinstance(replies[0], Refusal) and after != before:
            raise WrongResultError(f"a refused message changed {before} to {after}: {replies}")
        return "handled" if not replies else f"handled {type(replies[0]).__name__}"

    @staticmethod
    def _bytes_of(message: Any, *, compress: bool = False) -> bytes:
        return b"".join(bytes(part) for part in encode(message, compress=compress))

    @staticmethod
    def _changed_header(frame: bytes, rng: Random) -> bytes:
        """Change values in the header; prefix and, half of the time, lengths agree with it."""
        _, header_bytes, _ = PREFIX.unpack(frame[: PREFIX.size])
        body = frame[PREFIX.size + header_bytes :]
        fields = msgpack.unpackb(frame[PREFIX.size : PREFIX.size + header_bytes])
        if rng.random() < 0.8:
            at = rng.choice((0, 1, 2, 3, 3, 3, 3, 3))
            fields[at] = changed_value(fields[at], rng)
        else:
            fields = changed_value(fields, rng)
        if rng.random() < 0.3:
            body = damaged(body, rng) if body else body
        header = packed(fields)
        return PREFIX.pack(MAGIC, len(header), len(body)) + header + body


def packed(value: Any) -> bytes:
    """Return msgpack of a value; what it can't hold is left out."""
    try:
        return msgpack.packb(value, unicode_errors="surrogatepass")
    except (ValueError, OverflowError, TypeError):
        return msgpack.packb(_packable(value, 0), unicode_errors="surrogatepass")


def _packable(value: Any, depth: int) -> Any:
    if depth > 400:
        return None
    if isinstance(value, (list, tuple)):
        return [_packable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _packable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return value % 2**63
    return value


# The control plane --------------------------------------------------------------------------------


def new_coordinator(state: CoordinatorState | None = None) -> Coordinator:
    """A coordinator of a job, at its beginning or in a state that another one came to."""
    plan = LedgerPlan(batches_per_epoch=50, epochs=2, rows_of=lambda batch_id: 10, lanes=2)
    spec = CoordinatorSpec(
        store=STORE,
        plan=plan,
        evaluation_plan=None,
        mode="sync",
        group_size=2,
        global_batch=20,
        workers=2,
        depth=2,
    )
    return Coordinator(spec, state)


class ControlFrames:
    """Reports to a coordinator, and grants to a worker's session."""

    def __init__(self) -> None:
        rng = Random(0)
        kinds = (Report, Report, Grant)
        self._messages = [any_of(kind, rng) for _ in range(_OF_EACH_KIND) for kind in kinds]
        self._begin()

    def target(self) -> Target:
        return Target("control-frames", self.make, self.read, (OSError,))

    def make(self, rng: Random) -> tuple[str, bytes]:
        message = rng.choice(self._messages)
        kind = type(message)
        if rng.random() < 0.6:
            names = {"recovery_epoch": 0, "sequence": rng.randrange(1, 50)}
            if kind is Report:
                names |= {"worker": rng.randrange(3), "incarnation": rng.randrange(2)}
                names |= {"want": rng.randrange(3)}
            message = dataclasses.replace(message, **names)
        frame = _sent(message)
        if rng.random() < 0.4:
            return kind.__name__, damaged(frame, rng)
        fields = changed_value(msgpack.unpackb(frame[8:]), rng)
        body = packed(fields)
        return kind.__name__, frame[:4] + struct.pack("<I", len(body)) + body

    def read(self, data: tuple[str, bytes]) -> str:
        kind, frame = data
        if kind == "Grant":
            grant = receive_grant(Line(frame))  # type: ignore[arg-type]
            session = Session(0, 0, depth=2)
            session.report()
            for token in session.granted(dataclasses.replace(grant, sequence=1)):
                session.prepared(token)
            session.next_pull()
            session.report()
            return kind
        report = receive_report(Line(frame))  # type: ignore[arg-type]
        self._handled += 1
        if self._handled % _NEW_STATE_AFTER == 0:
            self._begin()
        for command in self._coordinator.handle(WorkerReported(report), self._handled / 100):
            if isinstance(command, SendRecords):
                for record in command.records:
                    applied = RecordsApplied(0, record.step + 1)
                    self._coordinator.handle(applied, self._handled / 100)
        return kind

    def _begin(self) -> None:
        self._handled = 0
        self._coordinator = new_coordinator()


def _sent(message: Report | Grant) -> bytes:
    line = _Kept()
    send_message(line, message)  # type: ignore[arg-type]
    return line.data


# The handshake ------------------------------------------------------------------------------------

_PLACE = "shard 0 at /folder/shard-0"


class Handshakes:
    """What a listener, or a client, is told by somebody who does not know the secret."""

    def target(self) -> Target:
        return Target("handshakes", self.make, self.read, (OSError,))

    def make(self, rng: Random) -> tuple[Callable[..., Any], bytes]:
        prove: Callable[..., Any] = rng.choice((prove_as_client, prove_as_server))
        name = rng.randbytes(rng.choice((0, 1, 10, 255)))
        said = rng.randbytes(64) + bytes([len(name)]) + name
        return prove, damaged(said, rng, (bytes(200),))

    def read(self, data: tuple[Callable[..., Any], bytes]) -> str:
        prove, said = data
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            prove(ours, b"the secret", _PLACE)
        raise WrongResultError("somebody who does not know the secret was let in")
