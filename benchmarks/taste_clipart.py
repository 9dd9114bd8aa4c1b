"""Openclipart's creators as users: their pictures in an order, by our embeddings; for benchmarks/taste.py.

Pictures are those of Debian's packages (demo/openclipart.py), each once; users the creators of LEAST pictures or more. Vectors
are the shipped encoder's, kept below the cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.taste_split import Split
from demo.days import stable_id
from demo.openclipart import ORDINARY_PIXELS, Clipart, fetch, read_clipart
from embedding.encoder.config import DEFAULT_CONFIG, embedding_version, load_config
from embedding.encoder.limits import ImageRejected
from embedding.encoder.model import PinEncoder
from embedding.encoder.training_set import SetRecipe
from embedding.taste.interests import Floats, Ids
from embedding.taste.recommend import DUPLICATE

LEAST, HELD_OUT = 5, 0.2
PICTURES_A_PASS = 64

log = logging.getLogger("pinlake")


@dataclass(frozen=True, eq=False)
class Creators:
    """Pictures by number: unit vectors (I, D); of each user the numbers of their pictures, and whether the encoder was trained
    on none of them (U,)."""

    vectors_ID: Floats  # noqa: N815
    pictures: list[Ids]
    unseen_U: NDArray[np.bool_]  # noqa: N815


def creators(cache: Path) -> Creators:
    """The creators of a cache, which is filled where it is empty. Raises PackagesUnavailableError."""
    clipart = distinct(read_clipart(fetch(cache / "openclipart")))
    vectors_ID, read = _vectors(clipart, cache / "taste")
    by_creator: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(read.tolist()):
        if clipart[row].meta.creator:
            by_creator[str(clipart[row].meta.creator)].append(number)
    found = {name: np.array(pictures) for name, pictures in sorted(by_creator.items()) if len(pictures) >= LEAST}
    recipe = SetRecipe()
    unseen = [len(own) <= recipe.max_creator_pins and was_held_out(name, recipe) for name, own in found.items()]
    return Creators(vectors_ID, list(found.values()), np.array(unseen))


def was_held_out(creator: str, recipe: SetRecipe) -> bool:
    """Whether the training set of the demo's lake holds a creator out, for validation or test: as jobs/splits.py has it."""
    digest = hashlib.sha256(f"{recipe.salt}/{stable_id('user', creator)}".encode()).hexdigest()
    return int(digest[:13], 16) / 2.0**52 < recipe.held_out_share + recipe.validation_share


def distinct(clipart: Sequence[Clipart]) -> list[Clipart]:
    """Ordinary pictures, those of the same bytes once."""
    first: dict[bytes, Clipart] = {}
    for one in clipart:
        if one.link_to is None and 0 < one.pixels <= ORDINARY_PIXELS:
            first.setdefault(hashlib.sha256(one.path.read_bytes()).digest(), one)
    return list(first.values())


def _vectors(clipart: Sequence[Clipart], cache: Path) -> tuple[Floats, Ids]:
    """Unit vectors (I, D) of the pictures that can be read, and which these are (I,)."""
    config = load_config(DEFAULT_CONFIG)
    names = "\n".join(one.name for one in clipart)
    key = f"{embedding_version(config)}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    file = cache / f"clipart-{key}.npz"
    if not file.is_file():
        encoder = PinEncoder.load(config)
        parts: list[Floats] = []
        read: list[int] = []
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, len(clipart), PICTURES_A_PASS):
                some = clipart[start : start + PICTURES_A_PASS]
                pixels = list(pool.map(partial(_pixels, encoder), some))
                good = [row for row, found in enumerate(pixels) if found is not None]
                parts.append(encoder.encode_pins([pixels[row] for row in good], [some[row].text for row in good]))
                read += [start + row for row in good]
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.partial.npz")
        np.savez(unfinished, vectors=np.concatenate(parts), read=np.array(read))
        unfinished.replace(file)
        log.info("%d of %d pictures are encoded", len(read), len(clipart))
    with np.load(file, allow_pickle=False) as saved:
        return saved["vectors"], saved["read"]


def _pixels(encoder: PinEncoder, clipart: Clipart) -> Tensor | None:
    try:
        return encoder.transform(encoder.decode(clipart.path.read_bytes(), ORDINARY_PIXELS))
    except ImageRejected:
        return None


# -- splits ----------------------------------------------------------------------------------------------------------------


def in_order(found: Creators, draw: int) -> list[Ids]:
    """Each creator's pictures in an order that is drawn."""
    rng = np.random.default_rng(draw)
    return [rng.permutation(pictures) for pictures in found.pictures]


def hold_out(ordered: Sequence[Ids], vectors_ID: Floats) -> Split:
    """Asks for the last fifth of each user's pictures. Of a picture that is nearly one that the user has, nothing is asked, and
    it is no candidate: nobody would be shown it (embedding/taste/recommend.py)."""
    known, asked, hidden = [], [], []
    for pictures in ordered:
        last = max(1, round(HELD_OUT * len(pictures)))
        history = pictures[:-last]
        near = np.flatnonzero((vectors_ID @ vectors_ID[history].T).max(axis=1) >= DUPLICATE)
        known.append(history)
        asked.append(np.setdiff1d(pictures[-last:], near))
        hidden.append(np.union1d(history, near))
    minutes = [np.arange(len(history)) for history in known]
    return Split(known, asked, hidden, len(vectors_ID), minutes)
