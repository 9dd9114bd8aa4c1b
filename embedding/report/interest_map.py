"""A map of interests: what lies close together is alike. Places by t-SNE, colours by k-means, names by the tags that tell most.

t-SNE (van der Maaten and Hinton, JMLR 2008) is computed exactly, from the first two principal components (Kobak and Berens,
Nature Communications 2019): the same interests give the same map. Distances across it mean little; neighbourhoods do.

Symbols: N interests, D dimensions, G groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from embedding.report.charts import figure, label, px
from embedding.report.markup import Html, element, fragment, plural, shorten
from embedding.report.taste import InterestSample
from embedding.taste.interests import Floats, Ids

GROUPS = 8
"""As many as there are colours that can be told apart."""
_TAGS = 2
_PERPLEXITY, _STEPS, _EXAGGERATED = 30.0, 400, 100
_WIDTH, _HEIGHT, _MARGIN = 1_000, 460, 24
_LARGEST, _SMALLEST = 13.0, 1.8
_CHAR_WIDTH, _LINE_HEIGHT = 7.6, 15.0
_GAP = 10.0
_LABEL_CHARS = 60

_faiss: Any = faiss


@dataclass(frozen=True)
class InterestMap:
    """places: (N, 2), in the unit square. groups: (N,), 0 being the largest. names: Of the groups."""

    sample: InterestSample
    places: Floats
    groups: Ids
    names: list[str]


def make_map(sample: InterestSample) -> InterestMap:
    """Time and memory: the square of the interests; 2,000 of them take 3 s of a core and 80 MB."""
    groups_N = group(sample.medoids)
    return InterestMap(sample, place(sample.medoids), groups_N, telling_tags(sample.labels, groups_N))


def group(vectors_ND: Floats, most: int = GROUPS) -> Ids:
    """The k-means group of each vector (N,), numbered by size."""
    count = max(1, min(most, len(vectors_ND) // 3))
    spread_out = _faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    setting = {"niter": 25, "nredo": 4, "seed": 1, "spherical": True, "min_points_per_centroid": 1, "init_method": spread_out}
    means = _faiss.Kmeans(vectors_ND.shape[1], count, **setting)
    means.train(np.ascontiguousarray(vectors_ND))
    nearest = means.index.search(np.ascontiguousarray(vectors_ND), 1)[1][:, 0]
    _, dense, sizes = np.unique(nearest, return_inverse=True, return_counts=True)
    rank: Ids = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return rank[dense]


def telling_tags(labels: Sequence[str | None], groups_N: Ids, tags: int = _TAGS) -> list[str]:
    """Of each group the tags that tell it from the others: those with most of n log(share in the group / share in all)."""
    of_group = [Counter[str]() for _ in range(int(groups_N.max(initial=-1)) + 1)]
    for words, number in zip(labels, groups_N, strict=True):
        of_group[number].update(set((words or "").split(", ")) - {""})
    everywhere = sum(of_group, Counter[str]())
    sizes = np.bincount(groups_N, minlength=len(of_group))
    names = []
    for counts, size in zip(of_group, sizes, strict=True):
        telling = {tag: n * math.log(n / size * len(labels) / everywhere[tag]) for tag, n in counts.items()}
        best = sorted(telling, key=lambda tag: (-telling[tag], -counts[tag], tag))[:tags]
        names.append(", ".join(best) or "without tags")
    return names


# -- places ----------------------------------------------------------------------------------------------------------------


def place(vectors_ND: Floats, steps: int = _STEPS) -> Floats:
    """A place in the unit square for each L2-normalised vector (N, 2)."""
    count = len(vectors_ND)
    centred = vectors_ND - vectors_ND.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    at = np.zeros((count, 2), np.float32)
    at[:, : min(2, len(values))] = (left * values)[:, :2]
    if count > 3 * GROUPS:  # of a handful the components say enough
        spread = max(float(at[:, 0].std()), 1e-12)
        at = _descend(_affinities(vectors_ND), (at / spread * 1e-4).astype(np.float32), steps)
    span = at.max(axis=0) - at.min(axis=0)
    unit: Floats = np.where(span > 0, (at - at.min(axis=0)) / np.where(span > 0, span, 1), 0.5).astype(np.float32)
    return unit


def _affinities(vectors_ND: Floats) -> Floats:
    """t-SNE's joint probabilities (N, N): of each row's Gaussian the width that gives it the perplexity."""
    count = len(vectors_ND)
    perplexity = min(_PERPLEXITY, (count - 1) / 3)
    distances = np.maximum(0, 2 - 2 * vectors_ND @ vectors_ND.T)
    np.fill_diagonal(distances, np.inf)
    distances -= distances.min(axis=1, keepdims=True)
    np.fill_diagonal(distances, np.inf)
    low, high = np.full((count, 1), -5.0, np.float32), np.full((count, 1), 15.0, np.float32)  # logarithms of 1 / (2 width^2)
    for _ in range(20):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * distances)
        near = weights / weights.sum(axis=1, keepdims=True)
        entropy = -(near * np.log(np.maximum(near, 1e-12))).sum(axis=1, keepdims=True)
        wide = entropy > math.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    joint: Floats = (near + near.T) / (2 * count)
    return joint


def _descend(joint_NN: Floats, at: Floats, steps: int) -> Floats:
    """Gradient descent with momentum and gains, as in the paper; the rate is that of Belkina et al. (2019)."""
    rate = max(len(at) / 48, 50.0)
    moved, gains = np.zeros_like(at), np.ones_like(at)
    ones, kernel, pull = np.ones((len(at), 1), np.float32), np.empty_like(joint_NN), np.empty_like(joint_NN)
    for step in range(steps):
        exaggeration, momentum = (12.0, 0.5) if step < _EXAGGERATED else (1.0, 0.8)
        squares = (at * at).sum(axis=1, keepdims=True)
        np.matmul(np.hstack([-2 * at, squares, ones]), np.hstack([at, ones, squares + 1]).T, out=kernel)  # 1 + distances^2
        np.reciprocal(kernel, out=kernel)
        np.fill_diagonal(kernel, 0)
        np.multiply(kernel, -1 / (exaggeration * kernel.sum()), out=pull)
        pull += joint_NN
        pull *= kernel
        sums = pull @ np.hstack([at, ones])
        gradient = 4 * exaggeration * (sums[:, 2:] * at - sums[:, :2])
        gains = np.maximum(np.where(np.sign(gradient) != np.sign(moved), gains + 0.2, gains * 0.8), 0.01)
        moved = (momentum * moved - rate * gains * gradient).astype(np.float32)
        at = at + moved
        at = at - at.mean(axis=0)
    return at


# -- drawing ---------------------------------------------------------------------------------------------------------------


def draw_map(made: InterestMap) -> Html:
    """Dots with titles, their area by importance, and the groups' names where most of their dots are."""
    x = _MARGIN + made.places[:, 0] * (_WIDTH - 2 * _MARGIN)
    y = _MARGIN + made.places[:, 1] * (_HEIGHT - 2 * _MARGIN)
    largest = made.sample.importances.max()
    radii = np.maximum(_SMALLEST, _LARGEST * np.sqrt(made.sample.importances / largest))
    largest_first = np.argsort(-radii, kind="stable")  # so that no dot hides a smaller one
    dots = [_dot(made, int(i), px(x[i]), px(y[i]), px(radii[i])) for i in largest_first]
    numbers = range(len(made.names))
    sizes = np.bincount(made.groups, minlength=len(made.names))
    legend = [(f"{made.names[number]} ({sizes[number]:,})", f"g{number}") for number in numbers]
    people = len(np.unique(made.sample.user_ids))
    described = f"{plural(len(made.sample), 'interest')} of {plural(people, 'user')}; {'; '.join(made.names)}"
    drawn = figure("The map", described, [*dots, _names(made, x, y)], legend, (_WIDTH, _HEIGHT))
    return element("div", drawn, class_="map")


def _dot(made: InterestMap, i: int, x: str, y: str, radius: str) -> Html:
    sample = made.sample
    said = shorten(sample.labels[i] or "without tags", _LABEL_CHARS)
    title = element("title", f"{said}: user {sample.user_ids[i]}, {plural(int(sample.sizes[i]), 'pin')}")
    return element("g", title, element("circle", cx=x, cy=y, r=radius), class_=f"g{made.groups[i]}")


def _names(made: InterestMap, x: Floats, y: Floats) -> Html:
    """Each group's name at the median of its dots, moved up or down where another one is; left out where there is no room."""
    taken: list[tuple[float, float, float]] = []
    labels = []
    for number, name in enumerate(made.names):
        mine = made.groups == number
        said = shorten(name, _LABEL_CHARS // 2)
        half = len(said) * _CHAR_WIDTH / 2
        middle_x = float(np.clip(np.median(x[mine]), half + 4, _WIDTH - half - 4))
        middle_y = float(np.median(y[mine]))
        for shift in (0, -1, 1, -2, 2, -3, 3):
            at = middle_y + shift * _LINE_HEIGHT
            free = all(
                abs(at - other_y) >= _LINE_HEIGHT or abs(middle_x - other_x) >= half + other + _GAP
                for other_x, other_y, other in taken
            )
            if free and _LINE_HEIGHT <= at <= _HEIGHT - 4:
                taken.append((middle_x, at, half))
                labels.append(label(middle_x, at, said))
                break
    return fragment(labels)
