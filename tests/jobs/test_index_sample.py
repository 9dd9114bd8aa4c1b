"""How a build chooses a recipe on a sample of the lake."""

from __future__ import annotations

import numpy as np
import pytest

from embedding.contracts import EMBEDDING_DIM
from embedding.index.factory import is_mergeable, lists_of
from embedding.index.tuning import Wanted, candidates, lists_for
from jobs import index_sample
from jobs.index_sample import QUERIES, Queries, Sample, sample_rows, try_on_sample
from tests.small_release import unit_vectors

ROWS, FEW = 6_000, 1_500


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Sample:
    """All of a lake that is small, and yet four times what is tried on at first."""
    monkeypatch.setattr(index_sample, "TRIAL_ROWS", FEW)
    vectors, ids = unit_vectors(ROWS, EMBEDDING_DIM), np.arange(ROWS, dtype=np.int64)
    return Sample(vectors, ids, Queries(vectors[:QUERIES], ids[:QUERIES]))


def test_what_is_best_of_a_few_is_compared_among_many_before_it_is_chosen(sample: Sample) -> None:
    choice = try_on_sample(sample, ROWS, "r", Wanted(0.9))
    finals = [trial.factory for trial in choice.trials if trial.rows == ROWS]
    assert {False, True} == set(map(is_mergeable, finals)), "graphs, and lists"
    assert {lists_of(name) for name in finals} == {1, lists_for(ROWS)}
    assert choice.factory in finals
    assert f"{ROWS:,} vectors" in choice.why and f"{FEW:,} vectors" in choice.why
    assert len([trial for trial in choice.trials if trial.rows == FEW]) >= 6


def test_a_budget_that_rules_one_kind_out_leaves_nothing_to_compare_again(sample: Sample) -> None:
    choice = try_on_sample(sample, ROWS, "r", Wanted(0.5, bytes_budget=300))
    assert {trial.rows for trial in choice.trials} == {FEW}
    assert choice.factory in candidates(ROWS, EMBEDDING_DIM, 300)


def test_a_build_looks_at_many_only_where_it_has_to_choose_between_kinds(sample: Sample) -> None:
    choice = try_on_sample(sample, ROWS, "r", Wanted(0.9))
    assert sample_rows(1_000_000, None) == 1_000_000
    assert sample_rows(1_000_000, choice) < 200_000, "a choice that is kept needs vectors to train on"
    assert sample_rows(10_000_000, None) < 1_000_000, "a graph of so many is not plausible"
