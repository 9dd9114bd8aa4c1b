from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo.clipart_trees import CREATORS, FOLDERS, add_clipart, add_link, rdf


@pytest.fixture
def clipart_tree(tmp_path: Path) -> Path:
    """Sixty pictures of three creators in four folders, and twelve links to other folders."""
    root = tmp_path / "open clip art"
    for number in range(60):
        folder = FOLDERS[number % 4]
        svg = rdf(f"Thing {number}", tags=(folder.split("/")[0], f"number_{number}"), creator=CREATORS[number % 3])
        add_clipart(root, f"{folder}/thing_{number:02}", svg, colour=(4 * number, 255 - number, number, 255))
    for number in range(12):
        folder, other = FOLDERS[number % 4], FOLDERS[(number + 1) % 4]
        add_link(root, f"{other}/again_{number:02}", f"{folder}/thing_{number:02}")
    return root
