"""From files to batches: which files, their plan, columns, keys, reading and decoding.

What a batch is used for is in `step`.
"""
