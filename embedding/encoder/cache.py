"""One loaded encoder a process and device, shared by everything in it that asks.

Spark reuses its Python workers from task to task: without this each task would load the weights again. The device is
named by its address, since a reused worker may be given another one the next time.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading

from embedding.encoder.config import EncoderConfig, embedding_version
from embedding.encoder.model import PinEncoder

_lock = threading.Lock()
_loaded: dict[tuple[str, str], PinEncoder] = {}


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks for the next batch, where it would give each back to the kernel at once.

    A forward pass on the CPU allocates and frees hundreds of megabytes; fetching those pages anew was a third of its time
    (two processes of pinclip-base: 33 images/s before, 43 after, at the same peak memory). Does nothing with another C library.
    For processes that only encode: nothing that is freed goes back to others, whatever used it.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def shared_encoder(config: EncoderConfig, device: str = "cpu", threads: int | None = None) -> PinEncoder:
    """The encoder of `config` on `device`, loaded on the first call. `threads` are set by that first call."""
    key = (str(embedding_version(config)), device)
    with _lock:
        if key not in _loaded:
            _loaded[key] = PinEncoder.load(config, device, threads)
        return _loaded[key]
