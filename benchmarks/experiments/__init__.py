"""Experiments on modes: what runs each consists of, and what its page says."""
