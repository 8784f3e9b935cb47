#!/usr/bin/env bash
# Ray 2.60.0: an actor of which *one* method is given a concurrency group runs all of its other methods in another thread than
# its __init__ from then on. Without groups both run in the main thread. What __init__ sets for its thread is not there
# any more: thread-locals, the float mode, contexts of CUDA and databases; signal.signal, and all that asks for the main thread, fail.
# Expected: who adds a group for a health check changes nothing for the methods that have none; there is one thread for
# them as before, but it is another one.
# What to do: make what belongs to a thread in the first method that runs there, not in __init__.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ray==2.60.0
cd "$folder"
RAY_AUTH_MODE=disabled venv/bin/python - <<'PYTHON'
import signal
import threading

import ray


class Plain:
    def __init__(self):
        self.mine = threading.local()
        self.mine.cache = {}

    def work(self):
        try:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signals = "may set signals"
        except ValueError as error:
            signals = str(error)
        in_main = threading.current_thread() is threading.main_thread()
        return in_main, hasattr(self.mine, "cache"), signals


class Watched(Plain):
    @ray.method(concurrency_group="health")
    def ping(self):
        return True


ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
plain = ray.remote(Plain).remote()
watched = ray.remote(concurrency_groups={"health": 1})(Watched).remote()
for name, actor in (("without", plain), ("with", watched)):
    print(f"{name} a group: main thread, thread-local there, signals:", ray.get(actor.work.remote()))
assert ray.get(plain.work.remote()) == (True, True, "may set signals")
assert ray.get(watched.work.remote())[:2] == (False, False)
ray.shutdown()
PYTHON
