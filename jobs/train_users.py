"""Trains the model that reads a user as one vector, and makes it live where it foresees later saves.

    spark-submit jobs/train_users.py --home .pinlake --run-id by-hand --encoder live

1. Nothing is done while the last look at this encoder's model was at days that are younger than `--every-days`.
2. Spark draws users by a hash, about `--users` at most, and stages their newest saves with vectors as Parquet; and some pins at
   random. No history passes through the driver but those of the batch that is learned from.
3. Of each history the newest fifth is held out. The model learns from the rest (embedding/taste/foresight.py); half of the
   judged users choose the round of learning, the other half judge the result, beside the decayed mean of a user's pins.
4. What finds most of the held-out saves, at least as many as that mean and as the live model, becomes the live one; where
   learning is worth nothing, that is where it started, or the mean itself. The log and the manifest have the figures.

Done again for the same state, it makes the same model. Memory: some thousand histories of at most 128 pins.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from hashlib import sha256

import pyarrow.parquet as pq

from embedding.contracts import NIGHTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste.foresight import Judged, LearningSetting, Pool, best_mean, best_start, judge, learn
from embedding.taste.sequence import UserModel, UserModelError, UserSetting, decayed_mean
from embedding.taste.user_models import (
    UserModelManifest,
    live_user_model,
    looked_at,
    models_uri,
    open_user_model,
    pack,
    pool_of,
    publish_model,
    read_user_manifest,
    write_model,
)
from jobs.argument_types import whole_number
from jobs.histories import state_until
from jobs.inputs import LATEST, day_or_latest
from jobs.session import arguments, job_encoder, log, run_program, spark_session
from jobs.staged_histories import Staged, stage_histories

MOST_JUDGED = 2_000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    def number(text: str) -> int:
        return whole_number(text, 0)

    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    parser.add_argument("--users", type=number, default=200_000, help="users that are learned from, at most about (200,000)")
    parser.add_argument("--every-days", type=number, default=7, help="days of data between two models (7); 0 always")
    parser.add_argument("--rounds", type=number, default=LearningSetting.rounds, help="rounds of learning at most")
    parser.add_argument("--seed", type=number, default=0)
    return parser.parse_args(argv)


def is_young(lake: Lake, version: str, ds: str, every_days: int) -> bool:
    """Whether the last look at a model was at a day less than `every_days` before this one, and there was somebody to see."""
    looked, live = looked_at(lake, version), live_user_model(lake, version)
    if looked is None or live is None or not read_user_manifest(lake, version, live).users:
        return False
    return (date.fromisoformat(ds) - date.fromisoformat(looked)).days < every_days


def train(staged: Staged, setting: UserSetting, learning: LearningSetting) -> tuple[dict[str, UserModel], int, Judged]:
    """The decayed mean, where learning starts and what is learned from it; the best round; and who judges them."""
    if not staged.users:  # the mean is a model too, and needs nobody
        mean = decayed_mean(setting, setting.decay)
        return {"mean": mean, "start": mean, "learned": mean}, 0, Judged([], [], Pool.empty(setting.dim))
    filesystem, path = storage.filesystem_of(staged.pins_uri)
    pool = pool_of(pq.read_table(path, filesystem=filesystem), staged.pins, staged.histories.all_saves)
    histories = list(staged.histories.first(MOST_JUDGED))
    choosing, judging = Judged.of(histories[::2], pool), Judged.of(histories[1::2], pool)
    start = best_start(setting, choosing, pool)
    learned = learn(staged.histories.batches(), pool, choosing, start, learning)
    return {"mean": best_mean(setting, choosing), "start": start, "learned": learned.model}, learned.round, judging


def write_best(
    lake: Lake, version: str, ds: str, staged: Staged, setting: UserSetting, learning: LearningSetting, run_id: str
) -> None:
    """Trains, judges, and publishes what is best."""
    models, round_, judging = train(staged, setting, learning)
    recall = {what: judge(model, judging).recall for what, model in models.items()}
    best = max(reversed(models), key=lambda what: recall[what])  # of equal ones what was learned
    name, weights = pack(models[best], version)
    manifest = UserModelManifest(
        version=name,
        embedding_version=version,
        ds=ds,
        setting=asdict(setting),
        users=staged.users,
        judged=len(judging.known),
        mean=recall["mean"],
        start=recall["start"],
        learned=recall["learned"],
        round=round_ if best == "learned" else 0,
        size_bytes=len(weights),
        sha256=sha256(weights).hexdigest(),
        built_by=run_id,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    said = ", ".join(f"{what} {found:.4f}" for what, found in recall.items())
    log.info("recall@10 of held-out saves of %d users: %s (round %d)", len(judging.known), said, round_)
    live = live_user_model(lake, version)
    found = judge(open_user_model(lake, version, live).model, judging).recall if live else 0.0
    if live and found > max(recall.values()):
        log.info("%s stays live: it finds %.4f", live, found)
        publish_model(lake, version, live, ds)
        return
    write_model(lake, manifest, weights)
    publish_model(lake, version, name, ds)
    log.info("%s is the live model of users under %s", name, version)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: nobody has saved anything yet")
    state = state_until(lake, encoder.version, args.ds)
    if is_young(lake, encoder.version, state.days[-1], args.every_days):
        log.info("the model of users was looked at less than %d days before %s: it stays", args.every_days, state.days[-1])
        return
    setting, learning = UserSetting(encoder.config.dim), LearningSetting(rounds=args.rounds, seed=args.seed)
    root = f"{models_uri(lake, encoder.version)}/.staged-{uuid.uuid4().hex}"
    spark = spark_session(f"model of users {encoder.version}")
    try:
        staged = stage_histories(spark, lake, state, root, most_users=args.users, max_pins=setting.max_pins, seed=args.seed)
        write_best(lake, encoder.version, state.days[-1], staged, setting, learning, args.run_id)
    finally:
        storage.delete_folder(root)


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError, UserModelError)
