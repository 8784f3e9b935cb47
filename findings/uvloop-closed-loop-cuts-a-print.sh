#!/usr/bin/env bash
# uvloop 0.23.0, CPython 3.11.7, Linux 6.18: after a loop of uvloop has been closed, the first print that fills a pipe
# is cut: of 1,000,001 bytes 65,537 arrive, what the pipe holds and the newline. Python's exit status is 0. It needs
# PYTHONUNBUFFERED=1 (or python -u), as most container images set it, and a reader that is not at once as fast.
# Expected: all of it, as with asyncio's own loop: the pipe is blocking before and after. The write is interrupted and returns
# early; an unbuffered standard output does not write the rest (python/cpython issue 85393), which here happens without any signal.
# Who is hurt: load generators and scorers that end with json.dumps of all they saw: the reader finds a part.
# What to do: sys.stdout = open(1, "w", closefd=False), or write to a file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$folder/report.py" <<'PYTHON'
import asyncio
import sys

if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop


async def work():
    await asyncio.sleep(0.01)


with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(work())
print("x" * 1_000_000)
PYTHON
arrived() { # LOOP [OPTION]: bytes that a reader gets who begins half a second later
    "$folder/venv/bin/python" "${@:2}" "$folder/report.py" "$1" | { sleep 0.5; wc -c; }
}
unset PYTHONUNBUFFERED
cut=$(arrived uvloop -u) own=$(arrived asyncio -u) buffered=$(arrived uvloop)
echo "uvloop, unbuffered: $cut; asyncio, unbuffered: $own; uvloop, buffered: $buffered"
[ "$cut" -lt 1000001 ] && [ "$own" -eq 1000001 ] && [ "$buffered" -eq 1000001 ]
