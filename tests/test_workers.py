"""What a worker that Spark keeps from task to task pays for the libraries it has imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

from embedding.workers import imports_aside


def test_what_was_imported_is_collected_once_and_what_a_task_leaves_is_still_freed() -> None:
    made: list[int] = []

    def task(batches: Iterator[int]) -> Iterator[int]:
        for batch in batches:
            cycle: list[object] = []
            cycle.append(cycle)
            made.append(id(cycle))
            yield batch

    try:
        sys.modules["imported_by_a_task"] = ModuleType("imported_by_a_task")
        assert list(imports_aside(task)(iter([1, 2]))) == [1, 2]
        frozen = gc.get_freeze_count()
        assert frozen > 1_000
        assert list(imports_aside(task)(iter([3]))) == [3]
        assert gc.get_freeze_count() <= frozen, "nothing new was imported"
        gc.collect()
        assert made[-1] not in {id(seen) for seen in gc.get_objects()}
    finally:
        gc.unfreeze()
        sys.modules.pop("imported_by_a_task", None)
