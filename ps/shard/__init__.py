"""One server's part of a job as a state machine: buffer, merge, dense blocks, evicted keys.

No clock, thread or socket: its shell is in `server`.
"""
