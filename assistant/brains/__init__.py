"""What can decide and answer: our own language model over projected pins (core), any OpenAI-compatible endpoint (context)."""
