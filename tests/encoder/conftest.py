"""The embedded default encoder, loaded once for the whole room."""

from __future__ import annotations

import pytest

from embedding.encoder.config import DEFAULT_CONFIG, load_config
from embedding.encoder.model import PinEncoder


@pytest.fixture(scope="session")
def encoder() -> PinEncoder:
    return PinEncoder.load(load_config(DEFAULT_CONFIG), threads=2)
