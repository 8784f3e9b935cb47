"""Models on disk: manifest, files of shards, digests, restoring, summaries.

When one is written is decided in `scheduler`.
"""
