"""A set's pins as encoders see them: in one order, by towers that run once, under names that tell towers apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding.encoder.config import load_config
from embedding.encoder.features import Projections
from embedding.encoder.judged_pins import JudgedSet, TowerCache, find_projections, pixel_vectors, tower_fingerprint
from embedding.encoder.model import PinEncoder
from embedding.encoder.training_set import Manifest, TrainingSetError
from embedding.tables.lake import Lake
from tests.encoder.planted_set import pins, plant_features, write_planted_set, write_tiny_encoder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Manifest]:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    return lake, write_planted_set(lake)


def tiny(folder: Path, rank: int = 32) -> PinEncoder:
    return PinEncoder.load(load_config(write_tiny_encoder(folder, rank)))


def test_pins_and_vectors_are_in_the_order_of_their_ids(written: tuple[Lake, Manifest], tmp_path: Path) -> None:
    judged = JudgedSet.open(*written)
    rows = pins()
    assert judged.pins.pin_ids_N.tolist() == sorted(row["pin_id"] for row in rows), "though the files are by board"
    encoder = tiny(tmp_path)
    vectors = TowerCache(judged).vectors(encoder.config)
    some = [0, 7, 8, 63, 119]
    assert vectors.text_ND[some] == pytest.approx(encoder.encode_texts([rows[row]["text"] for row in some]), abs=1e-5)
    assert judged.thumbnails_NF[some].tobytes() == b"".join(rows[row]["thumbnail"] for row in some)


def test_a_set_without_board_mates_to_find_is_refused(written: tuple[Lake, Manifest]) -> None:
    lake, manifest = written
    with pytest.raises(TrainingSetError, match="no test pin has a board-mate"):
        JudgedSet.open(lake, dataclasses.replace(manifest, files=[]))


def test_encoders_that_differ_in_their_heads_share_their_towers(
    written: tuple[Lake, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plant_features(monkeypatch)
    cache = TowerCache(JudgedSet.open(*written), tmp_path / "kept" / "features.npz")
    whole, part = (cache.vectors(tiny(tmp_path / str(rank), rank).config) for rank in (32, 2))
    assert len(runs) == 1 and not np.allclose(whole.fused_ND, part.fused_ND)
    again = TowerCache(JudgedSet.open(*written), tmp_path / "kept" / "features.npz")
    assert np.array_equal(again.vectors(tiny(tmp_path / "2", 2).config).fused_ND, part.fused_ND)
    assert len(runs) == 1, "the file has them"


def test_a_towers_fingerprint_changes_with_what_decides_its_features(tmp_path: Path) -> None:
    encoder = tiny(tmp_path / "one")
    found = tower_fingerprint(encoder, Projections())
    assert found == tower_fingerprint(tiny(tmp_path / "other", rank=2), Projections())
    shorter = dataclasses.replace(encoder.config, context_length=8)
    assert found != tower_fingerprint(PinEncoder.of_model(shorter, encoder.version, encoder.model), Projections())
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1e-3)
    assert found != tower_fingerprint(encoder, Projections())


def test_projections_are_found_by_their_names(encoder: PinEncoder, tmp_path: Path) -> None:
    assert find_projections(encoder.model) == Projections("visual.head.proj", "text.proj")
    assert find_projections(tiny(tmp_path).model) == Projections()


def test_pixels_are_unit_rows_and_absent_ones_zeros(written: tuple[Lake, Manifest]) -> None:
    judged = JudgedSet.open(*written)
    has_image = np.arange(len(judged.pins)) != 5
    found = pixel_vectors(dataclasses.replace(judged, pins=dataclasses.replace(judged.pins, has_image_N=has_image)))
    assert np.linalg.norm(found, axis=1) == pytest.approx(has_image.astype(float))
