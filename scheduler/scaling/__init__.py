"""How many workers and servers a running job should have: plain state machines over measurements.

They know no Ray and no clock; time and figures come in, decisions go out.
"""
