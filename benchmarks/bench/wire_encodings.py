"""What makes messages smaller, what that costs, and at which bandwidth it pays."""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import numpy.typing as npt
from numba import njit

from bench.exchanges import Exchange, array_bytes
from bench.lines import MEGA, Times, alternate, emit
from ps.messages.exchange import Message
from ps.messages.pull_push import Contribution, Pull, PullReply
from ps.messages.wire import PREFIX, decode_body, decode_header, encode

Float32Array = npt.NDArray[np.float32]


def encodings(exchange: Exchange, repeats: int) -> None:
    """Print a line for each message and encoding."""
    messages = (exchange.pull(), exchange.reply(), exchange.contribution())
    for message in messages:
        _zstd(message, exchange.batch, repeats)
    for message in messages[1:]:
        for name, narrow, widen in (
            ("float16", _to_float16, _from_float16),
            ("bfloat16", to_bfloat16, from_bfloat16),
        ):
            _halved(name, narrow, widen, message, exchange.batch, repeats)


_NAMES: dict[type, str] = {Pull: "pull", PullReply: "pull_reply", Contribution: "push"}


def _emit(
    encoding: str,
    message: Message,
    batch: int,
    encoded_bytes: int,
    to_wire: Times,
    from_wire: Times,
    **fields: float,
) -> None:
    """Print the cost beside what is saved: bytes over seconds is where both take the same time."""
    plain = array_bytes(message)
    seconds = median(to_wire.wall) + median(from_wire.wall)
    emit(
        "encoding",
        1e3 * seconds,
        "ms",
        encoding=encoding,
        message=_NAMES[type(message)],
        batch=batch,
        encode_ms=1e3 * median(to_wire.wall),
        decode_ms=1e3 * median(from_wire.wall),
        bytes=plain,
        encoded_bytes=encoded_bytes,
        ratio=plain / encoded_bytes,
        break_even_mb_per_second=max(0.0, (plain - encoded_bytes) / seconds / MEGA),
        repeats=len(to_wire.wall),
        **fields,
    )


def _zstd(message: Message, batch: int, repeats: int) -> None:
    head, body = encode(message, compress=True)
    header = decode_header(head[PREFIX.size :], len(body))
    compressed = np.frombuffer(body, np.uint8)
    to_wire, from_wire = alternate(
        repeats, partial(encode, message, compress=True), partial(decode_body, header, compressed)
    )
    _emit("zstd", message, batch, len(body), to_wire, from_wire)


def _halved(
    name: str,
    narrow: Callable[[Float32Array, npt.NDArray[np.uint16]], None],
    widen: Callable[[npt.NDArray[np.uint16], Float32Array], None],
    message: PullReply | Contribution,
    batch: int,
    repeats: int,
) -> None:
    """Rows and dense parameters, or their gradients, as 16 bits; the rest stays as it is."""
    rows = message.values if isinstance(message, PullReply) else message.gradients
    values = np.concatenate([rows, message.dense])
    wire, back = np.zeros(values.size, np.uint16), np.zeros_like(values)
    to_wire, from_wire = alternate(
        repeats, partial(narrow, values, wire), partial(widen, wire, back)
    )
    error = np.linalg.norm(back - values) / max(np.linalg.norm(values), np.finfo(np.float32).tiny)
    encoded = array_bytes(message) - wire.nbytes
    _emit(name, message, batch, encoded, to_wire, from_wire, relative_error=float(error))


def _to_float16(values: Float32Array, out: npt.NDArray[np.uint16]) -> None:
    out.view(np.float16)[:] = values


def _from_float16(wire: npt.NDArray[np.uint16], out: Float32Array) -> None:
    out[:] = wire.view(np.float16)


def to_bfloat16(values: Float32Array, out: npt.NDArray[np.uint16]) -> None:
    """The upper halves of float32, rounded to the nearest, ties to even; finite values only."""
    _round_to_bfloat16(values.view(np.uint32), out)


def from_bfloat16(wire: npt.NDArray[np.uint16], out: Float32Array) -> None:
    """The float32 values that have these upper halves."""
    _widen_bfloat16(wire, out.view(np.uint32))


@njit(nogil=True, error_model="numpy")
def _round_to_bfloat16(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16]) -> None:
    for i in range(bits.size):
        half = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        out[i] = np.uint16((bits[i] + half) >> np.uint32(16))


@njit(nogil=True, error_model="numpy")
def _widen_bfloat16(wire: npt.NDArray[np.uint16], bits: npt.NDArray[np.uint32]) -> None:
    for i in range(wire.size):
        bits[i] = np.uint32(wire[i]) << np.uint32(16)
