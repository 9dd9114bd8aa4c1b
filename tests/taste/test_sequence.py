"""The model that reads a user as one vector: what it starts as, what it learns, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from embedding.tables.lake import Lake
from embedding.taste.foresight import Judged, LearningSetting, Pool, hold_out, in_memory, judge, learn
from embedding.taste.interests import Floats
from embedding.taste.sequence import Contrast, History, UserModelError, UserSetting, decayed_mean
from embedding.taste.user_models import (
    WEIGHTS,
    UserModelManifest,
    delete_user_models,
    live_user_model,
    looked_at,
    models_uri,
    open_user_model,
    pack,
    publish_model,
    write_model,
)

TOPICS, OF_TOPIC, DIM = 12, 10, 16
SETTING = UserSetting(dim=DIM, max_pins=16, width=16, heads=2, layers=1, decay=3.0)
VERSION = "pinclip-base-0123456789ab"


def pins() -> Floats:
    """Vectors of pins: those of a topic near each other, topics far apart."""
    rng = np.random.default_rng(0)
    topics = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:TOPICS]
    found = np.repeat(topics, OF_TOPIC, axis=0) + 0.05 * rng.normal(size=(TOPICS * OF_TOPIC, DIM))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def walkers(count: int = 150) -> list[History]:
    """People who go from topic to topic in one order, three saves each, a save a day."""
    rng, vectors_ID = np.random.default_rng(1), pins()
    found = []
    for user in range(count):
        topics = (rng.integers(TOPICS) + np.arange(5)) % TOPICS
        saved = np.concatenate([OF_TOPIC * topic + rng.choice(OF_TOPIC, 3, replace=False) for topic in topics])[::-1]
        share = np.full(len(saved), 1 / (TOPICS * OF_TOPIC), np.float32)
        minutes = 1_440 * np.arange(len(saved), 0, -1)
        found.append(History(user, saved, minutes, vectors_ID[saved], vectors_ID[saved], share))
    return found


def judged() -> tuple[list[History], Pool, Judged]:
    vectors_ID, users = pins(), walkers()
    pool = Pool(
        np.arange(len(vectors_ID)), vectors_ID, np.full(len(vectors_ID), 1 / len(vectors_ID), np.float32), len(vectors_ID)
    )
    return [hold_out(user)[0] for user in users], pool, Judged.of(users, pool)


def test_new_it_is_the_decayed_mean() -> None:
    user = walkers(1)[0]
    weights = np.exp(-np.arange(len(user)) / 3.0)
    mean = (weights[:, None] * user.vectors_ND).sum(axis=0)
    (found,) = decayed_mean(SETTING, 3.0).encode([user])
    assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-5)


def test_it_learns_what_comes_next_which_a_mean_cannot_know() -> None:
    known, pool, asked = judged()
    start = decayed_mean(SETTING, 3.0)
    learning = LearningSetting(rounds=12, learning_rate=5e-3, window=3, negatives=64, seed=3)
    learned = learn(in_memory(known), pool, asked, start, learning)
    before, after = judge(start, asked).recall, judge(learned.model, asked).recall
    assert after > 0.4 > 2 * before, (before, after)
    assert learned.round > 0 and learned.gains[learned.round] == max(learned.gains)
    again = learn(in_memory(known), pool, asked, start, learning)
    assert pack(again.model, VERSION) == pack(learned.model, VERSION)


def test_a_vector_depends_on_its_history_alone() -> None:
    users = walkers(5)
    users[0] = users[0].before(12)  # shorter: padded beside the others
    model = decayed_mean(SETTING, 3.0)
    together = model.encode(users)
    alone = np.concatenate([model.encode([user]) for user in users])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_where_nothing_can_be_learned_the_start_comes_back() -> None:
    known, pool, asked = judged()
    start = decayed_mean(SETTING, 3.0)
    learned = learn(in_memory([user.newest(1) for user in known]), pool, asked, start, LearningSetting(rounds=3))
    assert learned.round == 0 and pack(learned.model, VERSION) == pack(start, VERSION)


def manifest_of(name: str, weights: bytes, ds: str) -> UserModelManifest:
    now = datetime.now(UTC).isoformat()
    digest = sha256(weights).hexdigest()
    shape = vars(SETTING)
    return UserModelManifest(name, VERSION, ds, shape, 10, 5, 0.1, 0.1, 0.2, 3, len(weights), digest, "test", now)


def test_a_stored_model_is_whole_and_reads_its_own_encoder_s_vectors_alone(tmp_path: Path) -> None:
    lake, users = Lake(str(tmp_path)), walkers(3)
    for decay, ds in ((3.0, "2026-11-18"), (10.0, "2026-11-19"), (30.0, "2026-11-20")):
        name, weights = pack(decayed_mean(SETTING, decay), VERSION)
        write_model(lake, manifest_of(name, weights, ds), weights)
        publish_model(lake, VERSION, name, ds)
    assert (live_user_model(lake, VERSION), looked_at(lake, VERSION)) == (name, "2026-11-20")
    assert len(list((tmp_path / "user_models" / VERSION).glob("users-*"))) == 2, "the live one and the one before"
    encoder = open_user_model(lake, VERSION, name)
    assert np.array_equal(encoder.encode(users, VERSION), decayed_mean(SETTING, 30.0).encode(users))
    with pytest.raises(UserModelError, match="reads vectors of"):
        encoder.encode(users, "pinclip-base-ba9876543210")
    file = Path(models_uri(lake, VERSION)) / name / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserModelError, match="damaged"):
        open_user_model(lake, VERSION, name)
    delete_user_models(lake, VERSION)
    assert live_user_model(lake, VERSION) is None and not list(tmp_path.glob("user_models/*/*"))


def test_a_contrast_tells_a_user_s_pins_from_what_all_pins_share() -> None:
    rng = np.random.default_rng(2)
    loud = rng.normal(size=(400, 1)) * np.eye(DIM)[:1] * 5  # one direction in which all pins differ, and that says nothing
    vectors_ID = np.asarray(pins()[np.arange(400) % len(pins())] + loud, np.float32)
    users = [vectors_ID[np.flatnonzero(np.arange(400) % len(pins()) // OF_TOPIC == topic)[:4]] for topic in range(TOPICS)]
    hits = []
    for contrast in (Contrast.none(DIM), Contrast.of(vectors_ID, 1.0)):
        means_BD = np.stack([user.mean(axis=0) - contrast.centre_D for user in users]) @ contrast.map_DD.T
        best = np.argsort(-means_BD @ vectors_ID.T, axis=1)[:, :10] % len(pins()) // OF_TOPIC
        hits.append(float((best == np.arange(TOPICS)[:, None]).mean()))
    assert hits[1] > 0.8 > 2 * hits[0], hits
