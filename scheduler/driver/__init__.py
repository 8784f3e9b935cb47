"""The driver: starts, watches, replaces and ends a job's processes; only it drives Ray.

Who computes which batch is decided in `coordinator`.
"""
