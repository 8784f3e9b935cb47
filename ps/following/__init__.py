"""Checkpoints of a running job for who can't see its disk: published, and mirrored elsewhere.

Import the modules directly; docs/design.md has the order in which they use one another.
"""
