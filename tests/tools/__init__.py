"""Checks of the repository itself: its locks, what is committed, what its code may not do."""
