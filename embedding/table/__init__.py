"""The embedding variable: rows by key, with index, counters, filter, admission and eviction.

No sockets, files or Ray.
"""
