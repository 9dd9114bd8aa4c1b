"""The gate of the taste graph: what a night's graph, related pins and interests must show before the graph is live."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CHANGE = 0.5
"""Share by which edges, or interests a user, may change from one night to the next: a faulty export often does more."""


@dataclass(frozen=True)
class TasteCounts:
    """What was counted. `..._before`: of the graph that is live, and of the days before; None where there is none.

    users: With a save of a living, embedded pin. up_to_date: Of these, with interests made of that very history.
    sampled, other_edges: Pins that were looked up, and how many of their edges only the graph has, or only the tables.
    no_row, naming_gone: Pins of the graph without a row of `related_pins`, and rows that name a pin that is not in the graph.
    """

    embedding_version: str
    live_version: str | None
    edges: int
    edges_before: int | None
    sampled: int
    other_edges: int
    no_row: int
    naming_gone: int
    users: int
    up_to_date: int
    interests: int
    interests_a_user_before: float | None

    @property
    def interests_a_user(self) -> float:
        return self.interests / self.users if self.users else 0.0


def check_taste(counts: TasteCounts, most_change: float = MOST_CHANGE) -> list[str]:
    """What is wrong, a sentence each."""
    found = []
    if counts.live_version not in (None, counts.embedding_version):
        found.append(f"interests are of {counts.embedding_version}, but the live release is of {counts.live_version}")
    if missing := counts.users - counts.up_to_date:
        found.append(f"{missing} of {counts.users} users have no interests made of what they have saved")
    if counts.other_edges:
        found.append(f"{counts.other_edges} edges of {counts.sampled} pins are others in the graph than in the tables")
    if counts.no_row:
        found.append(f"{counts.no_row} pins of the graph have no row of related pins")
    if counts.naming_gone:
        found.append(f"{counts.naming_gone} pins are related to a pin that is not in the graph")
    for name, now, before in (
        ("edges", float(counts.edges), counts.edges_before),
        ("interests a user", counts.interests_a_user, counts.interests_a_user_before),
    ):
        if before and abs(now / before - 1) > most_change:
            found.append(f"{now:,.4g} {name}, before {before:,.4g}: a change of more than {most_change:.0%}")
    return found
