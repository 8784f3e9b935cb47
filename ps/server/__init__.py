"""The shell of a shard: its threads, sockets, locks and Ray actor.

What a message does to rows is in `shard`.
"""
