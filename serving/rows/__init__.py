"""Rows that are only read: a base and, on top of it, what has changed since."""
