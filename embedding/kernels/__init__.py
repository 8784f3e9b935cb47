"""The machine level of tables: hashing, lines of the index, prefetch, copies, kernels kept.

No specs and no rows: those are in `spec` and `table`.
"""
