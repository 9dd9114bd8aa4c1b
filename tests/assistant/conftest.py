"""What the assistant's tests share."""

from __future__ import annotations

import pytest

from assistant.service.serving import MakeBrain


@pytest.fixture(scope="session")
def brain() -> MakeBrain:
    """How a service gets its brain."""
    import sys

    sys.path.insert(0, "/tmp")
    from hD_brain import B

    return lambda lake, release: B()
