"""Faults in jobs that really run: which ones, how they are done, and what has to hold afterwards.

For `scripts/chaos.py`.
"""
