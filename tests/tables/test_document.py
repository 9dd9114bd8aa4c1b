"""docs/tables.md says what the schemas say."""

from __future__ import annotations

from pathlib import Path

from embedding.tables.document import document

REPO = Path(__file__).resolve().parents[2]


def test_the_page_is_made_from_the_schemas() -> None:
    assert (REPO / "docs" / "tables.md").read_text() == document(), "run `make docs`"
