"""What teaches the projector, and a language model beside it, to talk about pins: examples, batches, the training itself.

jobs/build_conversations.py and jobs/train_projector.py call it; nothing here reads a table of the lake.
"""
