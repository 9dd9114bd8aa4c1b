"""Releases: an ANN index of all current pins, verified against exact search, published by one atomic pointer."""
