"""What is searched together: a release has one part, and a second one of the pins that changed since it was built.

Each part has its vectors, its pins' descriptions and attributes, and the pins that it hides: deleted ones, or ones whose newer
state another part has. Thread-safe: nothing changes after construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from embedding.index.factory import SearchSetting
from embedding.index.recall import Floats, Ids
from embedding.index.shards import RowSelection, Shards

DESCRIBED = pa.schema(
    [
        ("pin_id", pa.int64()),
        ("board_id", pa.int64()),
        ("title", pa.string()),
        ("image_uri", pa.string()),
        ("tags", pa.list_(pa.string())),
    ]
)
"""What describes a pin."""
ATTRIBUTES = pa.schema([("kind", pa.string()), ("value", pa.string()), ("pin_id", pa.int64())])
"""What a search may be confined to: `kind` is `board` or `tag`."""


@dataclass(frozen=True)
class Criteria:
    """What a search is confined to: pins that are on a board, have a tag and are among `pin_ids`; None: no matter."""

    board: int | None = None
    tag: str | None = None
    pin_ids: Ids | None = None


@dataclass(frozen=True)
class Part:
    """Vectors of pins and what describes them.

    pins: DESCRIBED, one row a pin.
    attributes: ATTRIBUTES.
    hidden: Pins that nothing finds, ascending.
    """

    shards: Shards
    setting: SearchSetting
    pins: pads.Dataset
    attributes: pads.Dataset
    hidden: Ids

    def hiding(self, pin_ids: Ids) -> Part:
        """This part without some more pins."""
        return replace(self, hidden=np.union1d(self.hidden, pin_ids))

    def search(self, queries_QD: Floats, k: int, among: RowSelection | None = None) -> tuple[Floats, Ids]:
        """Scores (Q, k) and pin ids (Q, k), best first; id -1 where there are fewer than k."""
        if among is not None or not len(self.hidden):
            return self.shards.search(queries_QD, k, self.setting, among)
        # Hidden pins are few: asking for some more costs less than a filter would. Where all of those are gone too, filter.
        scores, ids = self.shards.search(queries_QD, 2 * k, self.setting)
        gone = is_among(ids, self.hidden)
        if bool(((~gone & (ids >= 0)).sum(axis=1) < np.minimum(k, (ids >= 0).sum(axis=1))).any()):
            return self.shards.search(queries_QD, k, self.setting, self._shown)
        order = np.argsort(gone, axis=1, kind="stable")[:, :k]
        scores, ids = np.where(gone, -np.inf, scores).astype(np.float32), np.where(gone, -1, ids)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    @cached_property
    def _shown(self) -> RowSelection:
        return self.shards.select(self.pin_ids())

    def select(self, criteria: Criteria) -> RowSelection:
        """The rows that meet the criteria."""
        sets = [] if criteria.pin_ids is None else [criteria.pin_ids]
        for kind, value in (("board", criteria.board), ("tag", criteria.tag)):
            if value is not None:
                named = (pads.field("kind") == kind) & (pads.field("value") == str(value))
                sets.append(self.attributes.to_table(columns=["pin_id"], filter=named)["pin_id"].to_numpy())
        if not sets:
            return self._shown
        chosen = sets[0]
        for other in sets[1:]:
            chosen = np.intersect1d(chosen, other)
        return self.shards.select(chosen[~is_among(chosen, self.hidden)])

    def holds(self, pin_ids: Ids) -> NDArray[np.bool_]:
        """Which of the pins are here and not hidden."""
        here: NDArray[np.bool_] = (self.shards.places(pin_ids)[0] >= 0) & ~is_among(pin_ids, self.hidden)
        return here

    def pin_ids(self) -> Ids:
        """The pins that are shown, ascending: 8 bytes a pin."""
        ids = self.shards.pin_ids
        return ids[~is_among(ids, self.hidden)]

    def describe(self, pin_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The rows of `pins`, by id; a pin that is not shown is left out."""
        wanted = np.array(pin_ids, np.int64)
        shown = wanted[~is_among(wanted, self.hidden)]
        if not len(shown):
            return {}
        found = self.pins.to_table(filter=pads.field("pin_id").isin(pa.array(shown)))
        return {row["pin_id"]: row for row in found.to_pylist()}

    def boards(self) -> tuple[Ids, Ids]:
        """(pin ids, board ids) of the shown pins that are on a board, in no order."""
        pairs = self.pins.to_table(columns=["pin_id", "board_id"], filter=pads.field("board_id").is_valid())
        pins, boards = (pairs[name].to_numpy().astype(np.int64) for name in ("pin_id", "board_id"))
        shown = ~is_among(pins, self.hidden)
        return pins[shown], boards[shown]

    def count_described(self) -> int:
        """Distinct pins with a description, hidden ones included."""
        return int(pc.count_distinct(self.pins.to_table(columns=["pin_id"])["pin_id"]).as_py())


def is_among(ids: Ids, ascending: Ids) -> NDArray[np.bool_]:
    """Which ids are among sorted ones; a bisection each, so that a search pays nothing for how many those are."""
    if not len(ascending):
        return np.zeros(ids.shape, bool)
    places = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == ids
    return found
