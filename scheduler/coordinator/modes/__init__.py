"""Modes: which ended batches make a step and what they weigh, shifts, and the policy of `auto`.

The coordinator carries out what they say.
"""
