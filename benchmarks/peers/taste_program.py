"""What `implicit` would recommend: its item-to-item models and ALS, over a grid of settings. Run in an environment of its own.

    python taste_program.py --data FOLDER --out FOLDER

FOLDER has `train.npz`, a SciPy CSR of users and items. Writes a (settings, users, items) float32 array a library model, and
its settings: `scores-itemknn.npy`, `scores-als.npy`, `settings.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from scipy.sparse import load_npz

NEIGHBOURS = (20, 50, 100, 200, 400, 800)
FACTORS, REGULARIZATIONS, ALPHAS = (16, 32, 64, 128), (0.01, 0.1, 1.0), (1.0, 10.0, 40.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train = load_npz(args.data / "train.npz").tocsr().astype(np.float32)
    scores: dict[str, list[np.ndarray]] = {"itemknn": [], "als": []}
    settings: dict[str, list[str]] = {"itemknn": [], "als": []}
    for kind in (CosineRecommender, BM25Recommender):
        for neighbours in NEIGHBOURS:
            model = kind(K=neighbours)
            model.fit(train, show_progress=False)
            scores["itemknn"].append((train @ model.similarity).toarray().astype(np.float32))
            settings["itemknn"].append(f"{kind.__name__}, K {neighbours}")
    for factors in FACTORS:
        for regularization in REGULARIZATIONS:
            for alpha in ALPHAS:
                als = AlternatingLeastSquares(factors=factors, regularization=regularization, alpha=alpha, random_state=1)
                als.fit(train, show_progress=False)
                scores["als"].append(np.asarray(als.user_factors @ als.item_factors.T, np.float32))
                settings["als"].append(f"{factors} factors, regularization {regularization:g}, alpha {alpha:g}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, found in scores.items():
        np.save(args.out / f"scores-{name}.npy", np.stack(found))
    (args.out / "settings.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
