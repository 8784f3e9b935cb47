"""The socket on which workers, or relays for them, reach the coordinator: reports, and grants."""

import logging
from collections.abc import Callable, Sequence

from ps.messages.wire import WireError
from worker.control_bundles import MAX_BUNDLE_BYTES, pack_grants, unpack_reports
from worker.control_loop import ControlLoop, Frame
from worker.control_wire import MAGIC, MANY_MAGIC, MAX_BYTES, frame_of, framed, report_in
from worker.protocol import Grant, Report

logger = logging.getLogger(__name__)


class ControlPlane:
    """Answers reports, in one thread: those that come meanwhile are handled together.

    Args:
        exchange: answers reports, in their order.
        secret: what a worker must prove to know.
        on_error: called with an exception that nobody else would see.
    """

    def __init__(
        self,
        exchange: Callable[[Sequence[Report]], Sequence[Grant]],
        *,
        secret: bytes,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._exchange = exchange
        self._on_error = on_error
        self._loop = ControlLoop(
            "coordinator",
            secret=secret,
            limits={MAGIC: MAX_BYTES, MANY_MAGIC: MAX_BUNDLE_BYTES},
            received=self._received,
            on_error=on_error,
        )
        self.listener = self._loop.listener

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self._loop.close()

    def _received(self, frames: list[Frame]) -> None:
        asked: list[tuple[int, bytes, int]] = []  # by whom, how, and how many reports
        reports: list[Report] = []
        for number, magic, body in frames:
            try:
                its = [report_in(body)] if magic == MAGIC else unpack_reports(body)
            except WireError as error:
                logger.warning("the coordinator drops a connection: %s", error)
                self._loop.drop(number)
                continue
            asked.append((number, magic, len(its)))
            reports += its
        try:
            self._answer(asked, self._exchange(reports) if reports else ())
        except Exception as error:
            logger.error("the coordinator failed at a report", exc_info=error)
            self._on_error(error)
            for number, _, _ in asked:
                self._loop.drop(number)

    def _answer(self, asked: Sequence[tuple[int, bytes, int]], grants: Sequence[Grant]) -> None:
        begin = 0
        for number, magic, count in asked:
            its = grants[begin : begin + count]
            begin += count
            alone = magic == MAGIC
            self._loop.send(number, frame_of(its[0]) if alone else framed(magic, pack_grants(its)))
