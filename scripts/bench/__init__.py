"""What `scripts/bench_embedding.py` measures: an embedding variable, and the machine under it."""
