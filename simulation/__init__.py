"""The step protocol under seeded faults: real coordinator, shards and sessions, simulated world.

`engine.run(seed)` is the way in; tests/simulation/ holds the invariants' tests and the mutants.
"""
