"""How much of what people find stays the same when pictures are encoded another way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10

Vectors = npt.NDArray[np.float32]


def nearest(vectors_ND: Vectors) -> npt.NDArray[np.int64]:
    """The numbers (N, 10) of each unit vector's nearest others by cosine; fewer where there are fewer others."""
    cosines_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    return np.argsort(-cosines_NN, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(vectors_ND) - 1)]


def share_kept(reference_ND: Vectors, vectors_ND: Vectors) -> float:
    """The mean share of the reference's nearest that are still among the nearest."""
    pairs = zip(nearest(reference_ND), nearest(vectors_ND), strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in pairs]))
