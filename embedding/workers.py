"""What a long-lived worker process does once, whatever its tasks are.

Spark keeps its Python workers from task to task, and collects garbage after each. A full collection looks at every object that
torch, transformers and the other libraries have made at their import, half a million: 0.2 s a task on a free core, most of what
a small task took.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_modules_seen = 0


def imports_aside(function: Callable[[Iterator[T]], Iterator[T]]) -> Callable[[Iterator[T]], Iterator[T]]:
    """`function`, which after its end takes what has been imported out of the garbage collector's sight.

    Objects in cycles then stay for the process's life, as modules do anyway; all else is freed as before. See `gc.freeze` in
    Python's documentation.
    """

    def run(batches: Iterator[T]) -> Iterator[T]:
        yield from function(batches)
        _set_aside()

    return run


def _set_aside() -> None:
    global _modules_seen
    if len(sys.modules) != _modules_seen:  # else it was done, and nothing of that size has come since
        gc.collect()
        gc.freeze()
        _modules_seen = len(sys.modules)
