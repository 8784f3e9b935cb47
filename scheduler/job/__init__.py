"""The job file: its fields, checks and messages, and the specs that the other packages take.

Nothing that runs.
"""
