"""A driver that ends in the middle of its job, as by a signal that nobody takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from held_back import hold_back

from scheduler.coordinator.status import Status
from scheduler.driver.supervisor import Supervisor


@contextmanager
def driver_lost(when: Callable[[Status], bool]) -> Iterator[None]:
    """The driver ends where its status is such.

    The longer that takes the longer do batches, so that the job does not end before.
    """
    poll = Supervisor.poll

    def poll_or_end(self: Supervisor) -> Status:
        status = poll(self)
        if when(status):
            raise KeyboardInterrupt
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervisor, "poll", poll_or_end)
        hold_back(patch, lambda: True, growth=0.001)
        try:
            yield
        except KeyboardInterrupt:
            return
    raise AssertionError("the job came to its end before")
