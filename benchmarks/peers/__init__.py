"""Other engines' programs for benchmarks/encode.py. Each runs in an environment of its own, and imports nothing of pinlake."""
