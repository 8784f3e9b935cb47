"""Seeded damage to all that is read from outside: an error of ours or a right result, else a fault.

For the tests, and by hand: `python -m fuzzing --help`. Not in the wheel.
"""
