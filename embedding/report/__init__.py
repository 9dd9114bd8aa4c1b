"""The picture of a night: one self-contained HTML file about nights, quarantine, releases and what the search finds.

Reads tables and releases, and writes that one file. It judges nothing: verdicts come from `nights` and from the releases.
"""
