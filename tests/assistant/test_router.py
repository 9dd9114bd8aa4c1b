"""The shipped router, on requests whose kinds it was not trained on, and what it says of itself."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from assistant.router import FOLDER, WEIGHTS, Model, Router, RouterError
from assistant.train_router import read_requests, train
from assistant.turns import Message, Request


def asked(text: str, **more: object) -> Request:
    return replace(Request((Message("user", text),)), **more)  # type: ignore[arg-type]


def test_no_family_is_trained_on_and_judged() -> None:
    splits = defaultdict(set)
    rows = read_requests()
    for row in rows:
        splits[row.family].add(row.split)
    assert len(rows) >= 300
    assert all(len(of) == 1 for of in splits.values())


def test_held_out_requests_go_where_their_labels_say() -> None:
    rows, router = [row for row in read_requests() if row.split == "test"], Router.shipped()
    right = sum(router.route(row.request).mode == row.mode for row in rows) / len(rows)
    assert right > max(0.9, sum(row.mode == "quick" for row in rows) / len(rows))


@pytest.mark.parametrize(
    ("request_", "mode", "reason"),
    [
        (asked("Compare 2 and 5", shown=(1, 2)), "thinking", "you ask for a comparison"),
        (asked("plan a party for eight"), "thinking", "you ask for a plan"),
        (asked("warum ist das Schild gelb?"), "thinking", "you ask why"),
        (asked("", picture=b"x"), "quick", "a picture alone"),
        (asked("teapot"), "quick", "a request of a word or two"),
    ],
)
def test_rules_name_their_reason(request_: Request, mode: str, reason: str) -> None:
    routed = Router.shipped().route(request_)
    assert (routed.mode, routed.reason, routed.by) == (mode, reason, "rule")


def test_the_shipped_weights_are_what_the_training_makes() -> None:
    model, _ = train(read_requests())
    shipped = Model.load()
    for row in read_requests():
        assert model.thinking(row.request) == pytest.approx(shipped.thinking(row.request), abs=0.05)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "weights")
    weights = tmp_path / "weights" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RouterError, match="damaged"):
        Model.load(tmp_path / "weights")
    with pytest.raises(RouterError, match="no readable router"):
        Model.load(tmp_path)
