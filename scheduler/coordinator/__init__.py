"""The coordinator: tokens, ledger, records, evaluation: state machines, and their shell.

Starting and ending processes is in `driver`.
"""
