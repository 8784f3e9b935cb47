"""The run directory: who holds it, and the files that a run leaves behind.

Showing them is in `views`.
"""
