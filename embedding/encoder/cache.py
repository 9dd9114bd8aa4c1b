"""One loaded encoder a process and device, shared by everything in it that asks.

Spark reuses its Python workers from task to task: without this each task would load the weights again. The device is
named by its address, since a reused worker may be given another one the next time.
"""

from __future__ import annotations

import threading

from embedding.encoder.config import EncoderConfig, embedding_version
from embedding.encoder.model import PinEncoder

_lock = threading.Lock()
_loaded: dict[tuple[str, str], PinEncoder] = {}


def shared_encoder(config: EncoderConfig, device: str = "cpu", threads: int | None = None) -> PinEncoder:
    """The encoder of `config` on `device`, loaded on the first call. `threads` are set by that first call."""
    key = (str(embedding_version(config)), device)
    with _lock:
        if key not in _loaded:
            _loaded[key] = PinEncoder.load(config, device, threads)
        return _loaded[key]
