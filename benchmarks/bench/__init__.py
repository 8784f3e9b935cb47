"""What the benchmarks are made of: what they measure, and the machine under it."""
