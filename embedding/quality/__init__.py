"""The quality gate: what a night must show before anyone reads it."""
