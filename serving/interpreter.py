"""How the interpreter is set in a process that answers requests."""

import gc
import sys

from runtime.turns import ask_for_turns

_SWITCH_SECONDS = 0.0001


def keep_pauses_short() -> None:
    """Keep what else a process does from holding up its requests; call it once all is loaded.

    A collection of all objects takes 30 to 60 ms, nearly all of them of modules and compiled code,
    which stay: so what is there now is left out of collections. And who makes a new version gives
    the interpreter to who computes every tenth of a millisecond, not every five: a request asks for
    it several times. Turns on a core are a tenth of a millisecond, too, as far as others want it: a
    thread that wakes up for a request need not wait for the end of another one's.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
    ask_for_turns(_SWITCH_SECONDS)
