"""Builds an index release of all current pins: choose a recipe, train, fill and merge, measure, write the manifest.

    spark-submit jobs/build_index.py --home .pinlake --ds 2026-11-18 --run-id by-hand --encoder live

A release holds the current state over every day whose latest night passed its gate under the encoder, at one version of each
table; `--ds` only says which night asked. If a release of that very state exists, it is taken as it is.

The recipe is chosen by trying (embedding/index/tuning.py) and kept while the lake stays between half and twice as large, the
goal and the budget are the same, and the finished index reaches the goal.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import faiss
import numpy as np
from pyspark.sql import SparkSession

from embedding.contracts import EMBEDDING_DIM, NIGHTS
from embedding.encoder.config import ConfigError, EncoderConfig
from embedding.index.build import SHARD_BYTES, Shard, plan_layout
from embedding.index.factory import family_of, train_index
from embedding.index.reader import opened_shards
from embedding.index.recall import Floats, Ids, Truth
from embedding.index.release import (
    MANIFEST,
    Manifest,
    ReleaseError,
    live_release_id,
    make_release_id,
    read_manifest,
    release_uri,
    write_candidate,
)
from embedding.index.selections import tune_selections
from embedding.index.tuning import (
    RECALL_GOAL,
    TOP,
    Choice,
    Wanted,
    best_point,
    omp_threads,
    sweep,
    training_rows,
)
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.argument_types import day_argument
from jobs.current import (
    PIN_COLUMNS,
    CurrentState,
    current_state,
    current_vectors,
    described_pins,
    merged_near,
)
from jobs.index_pieces import Places, fill_pieces, piece_bounds, read_near
from jobs.index_sample import Queries, sample_rows, take_sample, try_on_sample
from jobs.release_files import merge_shards, write_attributes
from jobs.session import arguments, job_encoder, log, run_program, spark_session

RECIPE_VERSION = 3


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", type=day_argument, help="the day of the night that asked, for the log")
    parser.add_argument("--recall-goal", type=_share, default=RECALL_GOAL, help="recall@10 to reach (default %(default)s)")
    parser.add_argument("--bytes-a-vector", type=float, help="what the index may take, pin id included (default: no limit)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores that the reader will have")
    parser.add_argument("--try-again", action="store_true", help="try the recipes, though an earlier release's could be kept")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("above 0, at most 1")
    return share


def wanted_of(args: argparse.Namespace) -> Wanted:
    return Wanted(args.recall_goal, args.threads, args.bytes_a_vector)


def kept_choice(lake: Lake, version: str, rows: int, args: argparse.Namespace) -> Choice | None:
    """The live release's choice, where it is still to the point."""
    live = live_release_id(lake)
    if live is None or args.try_again:
        return None
    manifest = read_manifest(lake, live)
    choice = manifest.choice
    if choice is None or manifest.embedding_version != version or manifest.recall_at_10 < args.recall_goal:
        return None
    alike = (choice.wanted.recall_goal, choice.wanted.bytes_budget) == (args.recall_goal, args.bytes_a_vector)
    return choice if alike and choice.rows / 2 <= rows <= choice.rows * 2 else None


def build(
    spark: SparkSession, lake: Lake, state: CurrentState, release_id: str, config: EncoderConfig, args: argparse.Namespace
) -> Manifest:
    """Writes all files of the release, the manifest last. An earlier, unfinished attempt is overwritten.

    The vectors are read twice, for the sample and for the index, and shuffled once.
    """
    root, work_uri = release_uri(lake, release_id), f"{lake.releases_uri}/.building-{release_id}"
    storage.delete_folder(work_uri)
    described = described_pins(spark, lake, state, (*PIN_COLUMNS, "tags")).persist()
    vectors = partial(current_vectors, spark, lake, state, ("embedding",))
    rows = described.count()
    if not rows:
        raise ReleaseError(f"no current pin has a vector of {state.embedding_version}: there is nothing to release")
    kept = kept_choice(lake, state.embedding_version, rows, args)
    sample = take_sample(described, vectors(), rows, sample_rows(rows, kept), config, f"{work_uri}/sample")
    choice = kept or try_on_sample(sample, rows, release_id, wanted_of(args))
    with omp_threads(args.threads):
        trained = train_index(choice.factory, EMBEDDING_DIM, sample.vectors[: training_rows(choice.factory)])
    size = next(
        (t.bytes_a_vector for t in choice.trials if family_of(t.factory) == family_of(choice.factory)), 4.0 * EMBEDDING_DIM
    )
    layout = plan_layout(choice.factory, rows, size, int(os.environ.get("PINLAKE_SHARD_BYTES") or SHARD_BYTES))
    to = Places(work_uri, root, piece_bounds(sample.ids, layout))
    queries = sample.queries
    del sample
    threads = args.threads if layout.pieces == 1 else 1
    filled = fill_pieces(described, vectors, layout, trained, queries.vectors, threads, to)
    if sum(filled.rows.values()) != rows:
        raise ReleaseError(f"{rows} pins went in, but the pieces hold {sum(filled.rows.values())}")
    merged, shards = merge_shards(spark, layout, list(filled.rows), trained, work_uri, root)
    files = filled.files | merged.files | write_attributes(described, layout.shards, root).files
    near = merged_near(read_near(to, sorted(filled.rows)), len(queries))
    manifest = Manifest(
        release_id=release_id,
        ds=state.days[-1],
        embedding_version=state.embedding_version,
        encoder=config.name,
        rows=rows,
        dim=EMBEDDING_DIM,
        factory=choice.factory,
        days=state.days,
        pins_version=state.pins_version,
        pin_embeddings_version=state.pin_embeddings_version,
        built_by=args.run_id,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        files=files,
        shards=shards,
        choice=choice,
        **tuned(root, shards, choice.factory, queries, near, wanted_of(args)),
    )
    storage.write_atomic(f"{root}/{MANIFEST}", manifest.to_json())
    storage.delete_folder(work_uri)
    return manifest


def tuned(
    root: str, shards: Sequence[Shard], factory: str, queries: Queries, near: tuple[Floats, Ids], wanted: Wanted
) -> dict[str, Any]:
    """How the finished index is best searched, among all pins and among some: fields of the manifest."""
    truth = Truth.of(*near, queries.pin_ids, TOP)
    with opened_shards(root, shards) as opened:
        points = sweep(opened, factory, queries.vectors, truth, wanted)
        point = best_point(points, wanted.recall_goal)
        selections = tune_selections(opened, queries.vectors, queries.pin_ids, near, point.setting, wanted)
    return {"setting": point.setting, "recall_at_10": point.recall_at_10, "sweep": points, "selections": selections}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: there is nothing to release")
    state = current_state(lake, encoder.version)
    recipe = {"recipe": RECIPE_VERSION, "goal": args.recall_goal, "budget": args.bytes_a_vector, "faiss": faiss.__version__}
    release_id = make_release_id(state.days[-1], {**vars(state), **recipe})
    if storage.exists(f"{release_uri(lake, release_id)}/{MANIFEST}"):
        log.info("%s: release %s of this state exists already", args.ds or encoder.version, release_id)
    else:
        manifest = build(spark_session(f"build {release_id}"), lake, state, release_id, encoder.config, args)
        said = (release_id, manifest.rows, manifest.factory, manifest.setting, manifest.recall_at_10)
        log.info("%s: %d rows, %s, %s, recall@10 %.4f", *said)
        if manifest.choice:
            log.info("recipe of %s: %s", manifest.choice.chosen_by, manifest.choice.why)
    write_candidate(lake, args.run_id, release_id)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    run_program(main, ConfigError, ReleaseError)
