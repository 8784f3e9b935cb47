"""SIGTERM and Ctrl-C as a wish that the driver comes to, so that it can save the job first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Whether somebody has asked for the end; a second signal interrupts as ever."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Take the first signal within the block as a wish.

        Only those that would raise KeyboardInterrupt, and only in the main thread: whoever handles
        signals otherwise goes on to do so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is signal.default_int_handler
        ]

        def note(_: int, __: FrameType | None) -> None:
            self.came = True
            for number in ours:
                signal.signal(number, signal.default_int_handler)

        for number in ours:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, signal.default_int_handler)
