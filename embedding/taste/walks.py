"""Related pins by random walks over the pin-board graph, as Pixie does (arXiv 1711.07601).

A walker goes from a pin to one of its boards and from there to one of its pins, again and again, and starts anew from its query
pin now and then; the pins that are passed most often are related. Thousands of walkers go at once, a step of all being a few
operations of NumPy, so that what a query costs depends on how many steps it is given and not on the graph.

From the paper: more steps for a query pin of more boards (equation 2), a pin that is reached from several query pins
counts more than their sum (equation 3), and a walk ends early once enough pins have been passed often enough (algorithm
2). Its bias towards what suits the user is here one towards what was saved lately: adjacency lists are newest first, and
a place in them is drawn as u**recency.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.taste.graph import Graph, Ids, Nodes

Scores = NDArray[np.float32]

_WALKERS = 2_000
_LOOK_EVERY = 8
"""Rounds between two looks at whether a walk may end."""


@dataclass(frozen=True)
class WalkSetting:
    """How pins are walked from.

    steps: Of all walkers of one query together.
    restart: Probability of starting anew before a step; Pixie's alpha.
    recency: 1 draws a list's neighbours alike; 2 prefers its newer half by 71 to 29.
    enough_pins, enough_visits: A walk ends early when so many pins were visited so often; 0 never.
    """

    steps: int = 20_000
    restart: float = 0.5
    recency: float = 1.0
    enough_pins: int = 0
    enough_visits: int = 4


DEFAULT_WALK = WalkSetting()


@dataclass(frozen=True)
class Walked:
    """What a walk found: numbers of pins, most related first, their scores, and the steps that it took."""

    pins: Nodes
    scores: Scores
    steps: int


def walk(
    graph: Graph,
    pins: Nodes,
    weights: Scores | None = None,
    *,
    k: int = 100,
    setting: WalkSetting = DEFAULT_WALK,
    seed: int = 0,
) -> Walked:
    """The k pins most related to some pins together, these left out. The same seed, graph and pins give the same answer.

    Args:
        pins: Numbers of the query pins (Q,); -1 and pins without a board are passed over.
        weights: The share of the steps that each of them gets (Q,), beside its degree; all alike without.
    """
    pins = np.asarray(pins, np.int32)
    weights = np.ones(len(pins), np.float32) if weights is None else np.asarray(weights, np.float32)
    degrees = graph.pins.degrees(pins)
    usable = (degrees > 0) & (weights > 0)
    pins, weights, degrees = pins[usable], weights[usable], degrees[usable]
    if not len(pins):
        return Walked(np.empty(0, np.int32), np.empty(0, np.float32), 0)
    slots = _slots(degrees, weights, min(_WALKERS, setting.steps))
    rounds = max(1, setting.steps // len(slots))
    rng = np.random.default_rng(seed)
    keys = _visits(graph, pins, slots, rounds, setting, (rng.random((3, len(slots)), np.float32) for _ in range(rounds)))
    visited, counts = np.unique(keys, return_counts=True)
    found, scores = _boosted(visited, counts, len(graph.pins))
    fresh = ~np.isin(found, pins)
    found, scores = found[fresh], scores[fresh]
    best = np.lexsort((found, -scores))[:k]
    return Walked(found[best].astype(np.int32), scores[best], len(keys))


def related(
    graph: Graph, pins: Nodes, *, k: int = 50, setting: WalkSetting = DEFAULT_WALK, seed: int = 0
) -> tuple[Nodes, Scores]:
    """The k pins most related to each of many, itself left out: numbers (Q, k), -1 where there are fewer, and shares of visits.

    All are walked from at once, with `setting.steps` each. What is found for a pin does not depend on the others. Memory: 20
    bytes a step.
    """
    pins = np.asarray(pins, np.int32)
    numbers, scores = np.full((len(pins), k), -1, np.int32), np.zeros((len(pins), k), np.float32)
    if not len(pins):
        return numbers, scores
    walkers = max(1, min(_WALKERS, setting.steps // 16))
    slots, rounds = np.repeat(np.arange(len(pins)), walkers), max(1, setting.steps // walkers)
    keys = _visits(graph, pins, slots, rounds, setting, _draws_by_pin(graph.pins.ids_of(pins), rounds, walkers, seed))
    visited, counts = np.unique(keys, return_counts=True)
    query, found = visited // len(graph.pins), (visited % len(graph.pins)).astype(np.int32)
    other = found != pins[query]
    query, found, counts = query[other], found[other], counts[other]
    order = np.lexsort((found, -counts, query))
    query, found, counts = query[order], found[order], counts[order]
    rows = np.bincount(query, minlength=len(pins))
    rank = np.arange(len(query)) - np.repeat(np.cumsum(rows) - rows, rows)
    kept = rank < k
    numbers[query[kept], rank[kept]] = found[kept]
    scores[query[kept], rank[kept]] = counts[kept] / (max(1, setting.steps // walkers) * walkers)
    return numbers, scores


def _slots(degrees: Ids, weights: Scores, walkers: int) -> NDArray[np.int64]:
    """The query pin of each walker: shares of s = d (C - log d), C the largest log d of them and more (equations 1 and 2)."""
    log = np.log(degrees.astype(np.float64))
    share = weights * degrees * (log.max() + 1 - log)
    wanted = np.maximum(1, np.floor(walkers * share / share.sum())).astype(np.int64)
    return np.repeat(np.arange(len(degrees)), wanted)


def _draws_by_pin(ids: Ids, rounds: int, walkers: int, seed: int) -> Iterator[Scores]:
    """Of each round uniform numbers (3, pins * walkers), those of a pin from a generator of its own."""
    every = [np.random.Generator(np.random.Philox(key=[seed, pin])) for pin in ids.astype(np.uint64)]
    drawn = np.stack([rng.random((rounds, 3, walkers), np.float32) for rng in every], axis=2)
    return iter(drawn.reshape(rounds, 3, -1))


def _visits(
    graph: Graph, pins: Nodes, slots: NDArray[np.int64], rounds: int, setting: WalkSetting, draws: Iterator[Scores]
) -> NDArray[np.int64]:
    """query * pins + pin of each visit, `rounds` of all walkers or fewer."""
    start = pins[slots]
    at, base = start.copy(), slots * len(graph.pins)
    keys: list[NDArray[np.int64]] = []
    for number, uniform in zip(range(rounds), draws, strict=True):
        at = np.where(uniform[0] < setting.restart, start, at)
        boards, pins_of = uniform[1:] if setting.recency == 1.0 else uniform[1:] ** setting.recency
        at = graph.boards.pick(graph.pins.pick(at, boards), pins_of)
        there = at >= 0
        keys.append((base + at)[there])
        at = np.where(there, at, start)  # a pin whose boards were pruned away leads nowhere
        if setting.enough_pins and number % _LOOK_EVERY == _LOOK_EVERY - 1 and _is_enough(keys, setting):
            break
    return np.concatenate(keys)


def _is_enough(keys: list[NDArray[np.int64]], setting: WalkSetting) -> bool:
    counts = np.unique(np.concatenate(keys), return_counts=True)[1]
    return int((counts >= setting.enough_visits).sum()) >= setting.enough_pins


def _boosted(visited: NDArray[np.int64], counts: NDArray[np.int64], nodes: int) -> tuple[NDArray[np.int64], Scores]:
    """A pin's score is the square of the sum of the roots of its visits from each query pin (equation 3)."""
    found, inverse = np.unique(visited % nodes, return_inverse=True)
    return found, (np.bincount(inverse, np.sqrt(counts), len(found)) ** 2).astype(np.float32)
