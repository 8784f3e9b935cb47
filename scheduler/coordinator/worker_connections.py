"""The socket on which workers reach the coordinator: a report, a grant, one after another."""

import logging
from collections.abc import Callable

from ps.messages.wire import WireError
from ps.net.listener import Listener, Peer
from worker.control_wire import receive_report, send_message
from worker.protocol import Grant, Report

logger = logging.getLogger(__name__)


class ControlPlane:
    """Answers the workers' reports, in a thread for each worker.

    Args:
        exchange: answers a report; any thread may call it.
        secret: what a worker must prove to know.
        on_error: called with an exception that nobody else would see.
    """

    def __init__(
        self,
        exchange: Callable[[Report], Grant],
        *,
        secret: bytes,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._exchange = exchange
        self._on_error = on_error
        self.listener = Listener("coordinator", secret=secret, serve=self._serve)

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self.listener.close()

    def _serve(self, peer: Peer) -> None:
        try:
            while True:
                send_message(peer.sock, self._exchange(receive_report(peer.sock)))
        except WireError as error:
            logger.warning("the coordinator drops a connection: %s", error)
        except OSError:
            pass  # the worker is gone, or sends its report again on a new connection
        except Exception as error:
            logger.error("the coordinator failed at a report", exc_info=error)
            self._on_error(error)
