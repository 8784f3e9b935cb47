"""The exchange of a batch over Arrow Flight: one `do_exchange` stream on the loopback address.

A message is a record batch of one row with a binary value for each array, made without copies.
"""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import flight

from bench.exchanges import EMPTY_PULL, EMPTY_REPLY, Exchange, blank, produce, read, read_arrays
from bench.server_process import ServerProcess
from ps.messages.exchange import Message
from ps.messages.pull_push import PullReply
from ps.messages.wire import array_names

Array = npt.NDArray[Any]

_COLUMNS = 5  # arrays of the largest message
_SCHEMA = pa.schema([(str(number), pa.large_binary()) for number in range(_COLUMNS)])
_PULL, _PUSH, _CALL = b"pull", b"push", b"call"


class FlightTransport:
    """The worker's end, with a server process of its own."""

    def __init__(self, exchange: Exchange) -> None:
        self._sources = exchange.pull(), exchange.contribution()
        self._pull, self._contribution = blank(self._sources[0]), blank(self._sources[1])
        self._server = ServerProcess(start_server, exchange)
        self._client = flight.connect(("127.0.0.1", self._server.address))
        descriptor = flight.FlightDescriptor.for_path("exchange")
        self._writer, self._reader = self._client.do_exchange(descriptor)
        self._writer.begin(_SCHEMA)

    def pull(self) -> PullReply:
        """Ask for rows and dense parameters."""
        produce(self._sources[0], self._pull)
        values, dense, admitted, *_ = self._exchange(_PULL, self._pull)
        reply = PullReply(1, 0, values.view(np.float32), dense.view(np.float32), admitted)
        read(reply)
        return reply

    def push(self) -> None:
        """Send gradients and wait for the acknowledgement."""
        produce(self._sources[1], self._contribution)
        self._exchange(_PUSH, self._contribution)

    def call(self) -> None:
        """Call with nothing in it."""
        self._exchange(_CALL, EMPTY_PULL)

    def server_cpu_seconds(self) -> float:
        return self._server.cpu_seconds()

    def close(self) -> None:
        self._writer.done_writing()
        self._writer.close()
        self._client.close()
        self._server.close()

    def _exchange(self, name: bytes, message: Message) -> list[npt.NDArray[np.uint8]]:
        self._writer.write_with_metadata(_record_batch(message), name)
        return _arrays(self._reader.read_chunk().data)


class _Server(flight.FlightServerBase):
    def __init__(self, exchange: Exchange) -> None:
        super().__init__(("127.0.0.1", 0))
        self._exchange = exchange

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answer pulls with the exchange's rows, until the client has no more messages."""
        source = self._exchange.reply()
        reply = blank(source)
        writer.begin(_SCHEMA)
        for chunk in reader:
            read_arrays(*_arrays(chunk.data))
            if chunk.app_metadata.to_pybytes() == _PULL:
                produce(source, reply)
                writer.write_batch(_record_batch(reply))
            else:
                writer.write_batch(_record_batch(EMPTY_REPLY))


def start_server(exchange: Exchange) -> int:
    """Serve in a thread; return the port."""
    server = _Server(exchange)
    threading.Thread(target=server.serve, daemon=True).start()
    return int(server.port)


def _record_batch(message: Message) -> Any:
    arrays = [getattr(message, name) for name in array_names(type(message))]
    arrays += [np.empty(0, np.uint8)] * (_COLUMNS - len(arrays))
    return pa.record_batch([_binary(array) for array in arrays], schema=_SCHEMA)


def _binary(array: Array) -> Any:
    offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(array.view(np.uint8))]
    )


def _arrays(batch: Any) -> list[npt.NDArray[np.uint8]]:
    return [np.frombuffer(column[0].as_buffer(), np.uint8) for column in batch.columns]
