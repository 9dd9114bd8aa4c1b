"""Writes .env for docker-compose.yml: the names of .env.example, those without a value with a secret made at random.

    python3 tools/make_env.py [--file .env]

A file that is there keeps every line that it has and gets the names that it lacks, so it may be run after each upgrade. Nobody
but its owner may read it. Prints names and no value. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import secrets
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


def made(name: str) -> str:
    """A secret of 32 random bytes. Letters, digits, `-` and `_`, so that it may stand in an address."""
    if name.endswith("_FERNET_KEY"):
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    if name.endswith("_ACCESS_KEY"):
        return secrets.token_hex(10).upper()  # an id rather than a secret; S3's have 20 characters
    return secrets.token_urlsafe(32)


def completed(example: str, present: str) -> tuple[str, list[str]]:
    """The file's new text, and the names that it got a value for."""
    there = {name for name, value in _LINE.findall(present) if value}
    given: list[str] = []

    def fill(line: re.Match[str]) -> str:
        name, value = line.groups()
        if not value and name not in there:
            given.append(name)
            return f"{name}={made(name)}"
        return line.group()

    if not present:
        return _LINE.sub(fill, example), given
    text = _LINE.sub(lambda line: fill(line) if line.group(1) in dict(_LINE.findall(example)) else line.group(), present)
    text = text if text.endswith("\n") else text + "\n"
    names = {name for name, _ in _LINE.findall(present)}
    for line in _LINE.finditer(example):
        if line.group(1) not in names:
            text += fill(line) + "\n"
    return text, given


def write_private(path: Path, text: str) -> None:
    """Replaces a file by one that its owner alone may read, from its first byte."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=REPO / ".env")
    path = parser.parse_args(argv).file
    text, given = completed((REPO / ".env.example").read_text(), path.read_text() if path.exists() else "")
    write_private(path, text)
    sys.stdout.write(f"{path}: made {', '.join(given)}\n" if given else f"{path}: nothing was missing\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
