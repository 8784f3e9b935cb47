"""What a process that answers requests does not stop for."""

import gc
import sys

from serving.interpreter import keep_pauses_short


def test_what_is_there_is_not_collected_again_and_threads_take_short_turns() -> None:
    seconds = sys.getswitchinterval()
    try:
        keep_pauses_short()

        assert gc.get_freeze_count() > 10_000, "all of the modules and kernels"
        assert sys.getswitchinterval() < 0.001
        assert gc.isenabled(), "what is new is"
    finally:
        gc.unfreeze()
        sys.setswitchinterval(seconds)
