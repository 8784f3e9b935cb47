"""The side of those who ask shards: distinct keys of a batch, pulls and pushes, dense copies.

The shards' own side is in `shard` and `server`.
"""
