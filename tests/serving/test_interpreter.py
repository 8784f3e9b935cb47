"""What a process that answers requests does not stop for."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

from runtime.turns import ask_for_turns, turns
from serving.interpreter import keep_pauses_short


def test_what_is_there_is_not_collected_again_and_threads_take_short_turns() -> None:
    seconds = sys.getswitchinterval()
    usual = turns()
    try:
        keep_pauses_short()

        assert gc.get_freeze_count() > 10_000, "all of the modules and kernels"
        assert sys.getswitchinterval() < 0.001
        assert gc.isenabled(), "what is new is"
        if max(usual, default=0) > 0:  # where the system tells it
            assert turns() == {0.0001}
            with ThreadPoolExecutor(1) as others:
                assert others.submit(turns).result() == {0.0001}
    finally:
        ask_for_turns(0.0)
        assert turns() == usual
        gc.unfreeze()
        sys.setswitchinterval(seconds)
