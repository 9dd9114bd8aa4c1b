"""The router's training: logistic regression over the labelled requests.

    python -m assistant.train_router          # seconds; writes assistant/weights/router.safetensors and router.json

assistant/data/requests.jsonl has a request a line: `text`; `mode` and `tool`, its labels; `family`, what it is a variant of;
`split`, `train` or `test`, by a hash of the family, so that no variant of a test request was trained on; and, where it has
them, `before` (what the user wrote before), `shown` (how many pins the last answer had), and `user`, `picture`, `pin`: whether
there is one. The guideline of the labels: thinking where somebody with the pins before them would have to weigh, compare,
explain, arrange or plan something; quick where one look-up, or one sentence, is all that is asked.

The strength of the regularisation is chosen by cross-validation over families of the training part; the test part is not read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from assistant.router import MODES, TOOLS, Model, features
from assistant.turns import Message, Mode, Request, ToolName
from embedding.index.recall import Floats, Ids

REQUESTS = Path(__file__).parent / "data" / "requests.jsonl"
FOLDS = 5
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of the mean squared weight, as tried."""


@dataclass(frozen=True)
class Labelled:
    """A request with its labels."""

    request: Request
    mode: Mode
    tool: ToolName
    family: str
    split: str


def read_requests(path: Path = REQUESTS) -> list[Labelled]:
    """All of them, in the file's order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Labelled(_request(row), row["mode"], row["tool"], row["family"], row["split"]) for row in rows]


def _request(row: dict[str, object]) -> Request:
    before = [Message("user", str(text)) for text in row.get("before", ())]  # type: ignore[attr-defined]
    told = [message for one in before for message in (one, Message("assistant", "Here is what I found."))]
    shown = tuple(range(1, int(str(row.get("shown", 0))) + 1))
    return Request(
        (*told, Message("user", str(row["text"]))),
        picture=b"" if row.get("picture") else None,
        pin_id=1 if row.get("pin") else None,
        user_id=1 if row.get("user") else None,
        shown=shown,
    )


def situations(one: Labelled) -> list[Labelled]:
    """A request where it might as well be made: signed in or not, at a conversation's beginning or after another search.

    A label that holds there too. Without these, being signed in would be taken for a wish for recommendations.
    """
    request, found = one.request, [one]
    if request.user_id is None:
        found.append(replace(one, request=replace(request, user_id=1)))
    if not request.shown and len(request.messages) == 1:
        told = (Message("user", "show me something"), Message("assistant", "Here is what I found."), *request.messages)
        found += [replace(other, request=replace(other.request, messages=told, shown=tuple(range(1, 13)))) for other in found]
    return found


def fit(features_NF: Floats, labels_N: Ids, counts_N: Floats, classes: int, penalty: float) -> Floats:
    """Weights (F, classes), or (F, 1) of the second of two classes, of penalised logistic regression (L-BFGS).

    counts_N: How much each row counts.
    """
    x, y, counts = torch.from_numpy(features_NF), torch.from_numpy(labels_N), torch.from_numpy(counts_N / counts_N.sum())
    weights = torch.zeros((x.shape[1], 1 if classes == 2 else classes), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scores = x @ weights
        if classes == 2:
            missed = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], y.float(), counts, reduction="sum")
        else:
            missed = (counts * nn.functional.cross_entropy(scores, y, reduction="none")).sum()
        total = missed + penalty * weights[:-1].square().sum()  # the last is the constant
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return np.asarray(weights.detach().numpy(), np.float32)


def decided(features_NF: Floats, weights_FC: Floats) -> Ids:
    """The likeliest class of each row."""
    scores = features_NF @ weights_FC
    return np.asarray((scores[:, 0] > 0) if scores.shape[1] == 1 else scores.argmax(axis=1), np.int64)


def choose_penalty(
    features_NF: Floats, labels_N: Ids, counts_N: Floats, families: Sequence[str], classes: int
) -> tuple[float, dict[float, float]]:
    """The penalty of the best accuracy in cross-validation over families, the strongest of several; and all accuracies."""
    names = sorted(set(families))
    fold_of = {name: place % FOLDS for place, name in enumerate(np.random.default_rng(0).permutation(names).tolist())}
    folds = np.array([fold_of[family] for family in families])
    right = dict[float, float]()
    for penalty in PENALTIES:
        hits = np.zeros(len(folds), bool)
        for fold in range(FOLDS):
            mine = folds != fold
            weights = fit(features_NF[mine], labels_N[mine], counts_N[mine], classes, penalty)
            hits[~mine] = decided(features_NF[~mine], weights) == labels_N[~mine]
        right[penalty] = float(np.average(hits, weights=counts_N))
    return max(right, key=lambda penalty: (right[penalty], penalty)), right


def train(labelled: Sequence[Labelled]) -> tuple[Model, dict[str, dict[float, float]]]:
    """The model of the training part, and what cross-validation said of each penalty."""
    # Each request counts for one, in however many situations.
    told = [
        (other, 1 / len(every)) for one in labelled if one.split == "train" for every in [situations(one)] for other in every
    ]
    asking = [one for one in told if one[0].tool in TOOLS]  # a picture or a pin chooses its tool by itself
    tried, weights = dict[str, dict[float, float]](), list[Floats]()
    for name, rows, labels, classes in (
        ("mode", told, [MODES.index(one.mode) for one, _ in told], len(MODES)),
        ("tool", asking, [TOOLS.index(one.tool) for one, _ in asking], len(TOOLS)),
    ):
        features_NF, labels_N = np.stack([features(one.request) for one, _ in rows]), np.array(labels, np.int64)
        counts_N = np.array([count for _, count in rows], np.float32)
        penalty, tried[name] = choose_penalty(features_NF, labels_N, counts_N, [one.family for one, _ in rows], classes)
        weights.append(fit(features_NF, labels_N, counts_N, classes, penalty))
    return Model(*weights), tried


def main() -> int:
    model, tried = train(read_requests())
    for name, right in tried.items():
        print(f"{name}: " + ", ".join(f"{penalty:g} {share:.3f}" for penalty, share in right.items()))
    model.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
