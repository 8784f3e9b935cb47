#!/usr/bin/env bash
# ray 2.60.0: ray.init() replaces a SIGTERM handler that the driver had set: a driver that is terminated ends with
# code 15, its own handler is never called, and neither except nor finally runs. A trainer that wants to write what
# it has on SIGTERM (as batch systems and container platforms send it) loses that by starting Ray.
# What to do: set the handler again after ray.init.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ray==2.60.0
cd "$folder"
cat > driver.py <<'PYTHON'
import os
import signal
import sys

import ray


def stop(*_):
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, stop)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
if sys.argv[1] == "again":
    signal.signal(signal.SIGTERM, stop)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.sigtimedwait([], 5)
except KeyboardInterrupt:
    print("stopped by the driver's own handler")
    ray.shutdown()
    sys.exit(130)
PYTHON
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
for when in before again; do
    code=0
    venv/bin/python driver.py "$when" > "$when.txt" 2> "$when.err" || code=$?
    echo "handler set $when: exit $code, $(cat "$when.txt")"
    eval "$when=$code"
done
[ "$before" = 15 ] && [ ! -s before.txt ] && [ "$again" = 130 ]
