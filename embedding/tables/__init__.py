"""The lake: Delta tables, the files staged for them, and the commits that make a day visible."""
