"""The taste graph: who saved what with what, and what that says about pins, boards and people."""
