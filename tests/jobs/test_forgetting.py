"""A pin and a user, from the night that brings them to the last file that knew them: tables, graph, interests, releases."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from assistant.training import conversations
from embedding.cli import main as pinlake
from embedding.contracts import (
    BOARD_EMBEDDINGS,
    BOARDS,
    NIGHTS,
    PIN_EMBEDDINGS,
    PINS,
    QUARANTINE,
    RELATED_PINS,
    SAVES,
    TABLES,
    USER_EMBEDDINGS,
    USER_INTERESTS,
    USERS,
    TableContract,
)
from embedding.encoder import training_set as ts
from embedding.index.live import LiveRelease
from embedding.index.recall import Floats
from embedding.index.release import list_releases, live_release_id, read_candidate
from embedding.tables.lake import Lake
from embedding.tables.maintenance import commit_rewrites
from embedding.tables.scan import read_rows
from embedding.taste.graph import UnknownUserError
from embedding.taste.recommend import Recommender, read_interests
from embedding.taste.store import finished_graphs, live_graph_id, open_graph
from jobs.step_statistics import StepStatistics
from tests.conftest import RunNight
from tests.jobs.platform_days import Row, pin, save, write_day
from tests.jobs.test_fresh import build, make_live
from tests.jobs.test_graph import taste

pytestmark = pytest.mark.timeout(1200)

ARRIVED, DELETED = "2026-11-21", "2026-11-22"
PIN, THEIRS, UNREADABLE, EMPTY, LAST = (4_611_001_002_003_004_001 + 7_919 * number for number in range(5))
"""The pin that is deleted; the user's own: a good one, one without a picture, one that cannot land, one of the last day."""
NEW = 4_611_001_002_003_104_003
USER, BOARD = 4_711_005_006_007_008_009, 4_811_005_006_007_008_011
WORDS = ("quokka", "ptarmigan")
"""In every text and address of the deleted pin, and of what is the user's; in nobody else's."""


@dataclass
class Story:
    """A lake, where its days are, and what was there before the deletions."""

    lake: Lake
    exports: Path
    other: tuple[int, int]
    vectors: list[Floats] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    held: dict[str, list[str]] = field(default_factory=dict)


def rows(lake: Lake, contract: TableContract) -> list[Row]:
    return list(read_rows(lake.open(contract)).to_pylist())


def latest(lake: Lake, contract: TableContract, *key: str) -> dict[tuple[Any, ...], Row]:
    return {tuple(row[name] for name in key): row for row in sorted(rows(lake, contract), key=lambda row: row["ds"])}


def current(lake: Lake, contract: TableContract) -> dict[tuple[Any, ...], Row]:
    key = [name for name in contract.key if name != "ds"]
    return {of: row for of, row in latest(lake, contract, *key).items() if not row["deleted"]}


def picture(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(8).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(folder / name)
    return (folder / name).as_uri()


@pytest.fixture(scope="module")
def story(released_lake: Lake, run_night: RunNight, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The lake with a fourth day that has the pin and the user; released, related and profiled; a training set made of it."""
    root = tmp_path_factory.mktemp("forgetting")
    lake = Lake(str(root / "lake"))
    shutil.copytree(released_lake.home, lake.home)
    owners = sorted({(row["user_id"], row["board_id"]) for row in current(lake, BOARDS).values()})
    (anna, annas), (bert, berts) = owners[0], next(owner for owner in owners if owner[0] != owners[0][0])
    known = next(row["pin_id"] for row in current(lake, PINS).values() if row["user_id"] == anna)
    uri = picture(root / "pictures", "quokka.png")
    day = {
        "pins": [
            pin(ARRIVED, PIN, anna, annas, "Quokka juggling lighthouses", image_uri=uri, tags=["quokka"]),
            pin(ARRIVED, THEIRS, USER, BOARD, "Ptarmigan origami cathedral", tags=["ptarmigan"]),
            pin(ARRIVED, UNREADABLE, USER, BOARD, None, image_uri="file:///nowhere/ptarmigan.png"),
            pin(ARRIVED, EMPTY, USER, BOARD, "ptarmigan" * 5_000, image_uri="file:///nowhere/ptarmigan.png"),
        ],
        "boards": [{"board_id": BOARD, "user_id": USER, "title": "Ptarmigan things"}],
        "saves": [
            *(save(ARRIVED, anna, pin_id, annas) for pin_id in (PIN, THEIRS)),
            *(save(ARRIVED, bert, pin_id, berts) for pin_id in (PIN, THEIRS)),
            *(save(ARRIVED, USER, pin_id, BOARD) for pin_id in (PIN, THEIRS, known)),
        ],
    }
    write_day(root / "exports", ARRIVED, day)
    assert run_night(lake, ARRIVED, "arrived", folder=root / "exports") == 0
    make_live(lake, build(lake, "arrived"))
    taste(lake, "arrived", interests=True)
    profile(lake, "arrived")
    story = Story(lake, root / "exports", (anna, bert))
    story.vectors = [
        np.array(row["embedding"], np.float32) for row in rows(lake, PIN_EMBEDDINGS) if row["pin_id"] in (PIN, THEIRS)
    ]
    assert len(story.vectors) == 2
    write_training_set(lake)
    return story


def profile(lake: Lake, run_id: str) -> None:
    """The vectors of boards and users, as the night has them."""
    from jobs import embed_boards, embed_users, train_users

    common = ["--home", lake.home, "--run-id", run_id]
    embed_boards.main(common)
    train_users.main([*common, "--rounds", "1"])  # once: a model is a week old before there is another
    embed_users.main(common)


def write_training_set(lake: Lake) -> None:
    """A set as the job leaves one, as far as forgetting looks at it: made of the tables as they are."""
    versions = {contract.name: lake.open(contract).version() for contract in (PINS, BOARDS, SAVES)}
    made = ts.Manifest(
        f"{ARRIVED}-0123456789ab", ARRIVED, [ARRIVED], versions, {}, ts.RECIPE_VERSION, {}, {}, {}, 0, [], "run",
        datetime.now(UTC).isoformat(), 1.0,
    )  # fmt: skip
    folder = Path(ts.set_uri(lake, made.set_id), "pins")
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"pin_id": [PIN], "text": ["Quokka juggling lighthouses"]}), folder / "part-00000.parquet")
    ts.write_manifest(lake, made)
    write_examples(lake, made.set_id)


def write_examples(lake: Lake, set_id: str) -> None:
    """What the assistant's projector would learn from, made of that set."""
    said = conversations.ConversationsManifest(f"{ARRIVED}-abcdef012345", "tiny", set_id, 0, {}, {}, "run")
    folder = Path(conversations.conversations_uri(lake, said.conversations_id))
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"about": [PIN], "choices": [["Quokka juggling lighthouses"]]}), folder / "train-00000.parquet")
    conversations.write_manifest(lake, said)


@pytest.fixture(scope="module")
def deleted(story: Story, run_night: RunNight) -> Story:
    """The night after it, on which both are deleted; seen by a reader, then released, related and profiled."""
    lake, (anna, _) = story.lake, story.other
    board = next(board for (board,), row in current(lake, BOARDS).items() if row["user_id"] == anna)
    day: dict[str, list[Row]] = {
        "pins": [
            pin(DELETED, PIN, anna, board, None, deleted=True),
            pin(DELETED, NEW, anna, board, "A fox in a field"),
            pin(DELETED, LAST, USER, BOARD, "Ptarmigan, farewell"),
        ],
        "saves": [save(DELETED, anna, NEW, board), save(DELETED, USER, NEW, BOARD)],
        "users": [{"user_id": USER, "deleted": True}, {"user_id": None, "deleted": True}],
    }
    write_day(story.exports, DELETED, day)
    live = LiveRelease(lake)
    assert set(live.release.pin_ids().tolist()) >= {PIN, THEIRS}
    assert run_night(lake, DELETED, "deleted", folder=story.exports) == 0
    assert live.refresh(), "a reader sees it before there is a release"
    assert not {PIN, THEIRS, LAST} & set(live.release.pin_ids().tolist())
    make_live(lake, build(lake, "deleted"))
    taste(lake, "deleted", interests=True)
    profile(lake, "deleted")
    return story


def test_the_night_counts_what_the_deletion_of_a_user_implies(deleted: Story) -> None:
    (night,) = [row for row in rows(deleted.lake, NIGHTS) if row["run_id"] == "deleted"]
    assert night["status"] == "passed"
    # Of the export: the pin, and the user's last one. Implied: the user's pins of the day before.
    assert (night["landed"], night["new"], night["embedded"], night["deleted"]) == (1, 1, 1, 4)
    bad = [(row["entity"], row["reason"]) for row in rows(deleted.lake, QUARANTINE) if row["ds"] == DELETED]
    assert bad == [("user", "null_id")]


def test_both_are_gone_from_every_current_view(deleted: Story, capsys: pytest.CaptureFixture[str]) -> None:
    lake, (anna, bert) = deleted.lake, deleted.other
    gone = {PIN, THEIRS, UNREADABLE, EMPTY, LAST}
    assert not gone & {of for (of,) in current(lake, PINS)}
    assert (BOARD,) not in current(lake, BOARDS)
    assert USER not in {user for user, _, _ in current(lake, SAVES)}
    with LiveRelease(lake) as live:
        ids = set(live.release.pin_ids().tolist())
        assert NEW in ids and not gone & ids
        _, near = live.release.search(np.stack(deleted.vectors), 10)
        assert not gone & set(near.ravel().tolist())
        recommender = Recommender(lake, live)
        with pytest.raises(UnknownUserError, match="has no interests"):
            recommender.recommend(USER)
        for user in (anna, bert):
            assert not gone & {found.pin_id for found in recommender.recommend(user)}
            kept = read_interests(lake, live.release.manifest.embedding_version, user)
            assert kept and not any(gone & set(interest.pins.tolist()) for interest in kept)
            assert not any(word in str(interest.label) for interest in kept for word in WORDS)
    assert pinlake(["--home", lake.home, "search", "--pin", str(PIN)]) != 0
    capsys.readouterr()
    graph = open_graph(lake, str(live_graph_id(lake)))
    assert (graph.pins.nodes_of(np.array(sorted(gone))) == -1).all() and graph.boards.nodes_of(np.array([BOARD]))[0] == -1
    related = latest(lake, RELATED_PINS, "pin_id")
    assert not any(gone & set(row["related"]) for row in related.values())
    assert not any(related[of]["related"] for of in related if of[0] in gone)
    boards, users = latest(lake, BOARD_EMBEDDINGS, "board_id"), latest(lake, USER_EMBEDDINGS, "user_id")
    assert boards[BOARD,]["embedding"] is None and users[USER,]["embedding"] is None
    assert not gone & {row["medoid_pin"] for row in boards.values()}
    assert not any(word in str(row["label"]) for row in boards.values() for word in WORDS)


def state(lake: Lake) -> dict[str, Any]:
    """What readers see, of everybody who is left."""
    interests = latest(lake, USER_INTERESTS, "user_id", "embedding_version")
    pins, vectors = current(lake, PINS), rows(lake, PIN_EMBEDDINGS)
    return {
        "pins": pins,
        "boards": current(lake, BOARDS),
        "saves": {of: row for of, row in current(lake, SAVES).items() if (of[1],) in pins},
        "vectors": sorted((row["pin_id"], row["ds"], *row["embedding"]) for row in vectors if (row["pin_id"],) in pins),
        "boards' vectors": {
            of: row["embedding"] for of, row in latest(lake, BOARD_EMBEDDINGS, "board_id").items() if row["size"]
        },
        "users' vectors": {of: row["embedding"] for of, row in latest(lake, USER_EMBEDDINGS, "user_id").items() if row["size"]},
        "related": {of for of, row in latest(lake, RELATED_PINS, "pin_id").items() if row["related"]},
        "interests": sorted(
            (row["user_id"], row["medoid_pin"], *row["pins"])  # numbers are anew where a day is done again
            for row in rows(lake, USER_INTERESTS)
            if row["size"] and row["ds"] == interests[row["user_id"], row["embedding_version"]]["ds"]
        ),
    }


def versions(lake: Lake) -> dict[str, int]:
    return {name: lake.open(contract).version() for name, contract in TABLES.items()}


def killed_at(table: TableContract) -> Callable[..., Any]:
    """A commit that ends the program when it comes to a table."""

    def run(lake: Lake, contract: TableContract, *args: Any, **kwargs: Any) -> Any:
        if contract is table:
            raise KeyboardInterrupt
        return commit_rewrites(lake, contract, *args, **kwargs)

    return run


@pytest.fixture(scope="module")
def forgotten(deleted: Story, run_night: RunNight) -> Story:
    """Forgotten at once, then vacuumed without a retention: in two runs, the live release holds both in the first."""
    from jobs import forget, maintain_tables

    lake = deleted.lake
    at_once = ["--home", lake.home, "--forget-days", "0"]
    deleted.held = all_traces(lake, deleted.vectors)
    before, seen, files = state(lake), versions(lake), sorted(Path(lake.home).rglob("*.parquet"))
    assert forget.main([*at_once, "--run-id", "dry", "--dry-run"]) == 3
    assert (versions(lake), sorted(Path(lake.home).rglob("*.parquet"))) == (seen, files)
    told = StepStatistics.read(lake, "maintenance", "dry", "forget")
    assert told["tables"]["pin_embeddings"]["rows"] >= 2 and told["tables"]["saves"]["rows"] >= 7
    # Younger than that nothing goes.
    assert forget.main(["--home", lake.home, "--forget-days", "10000", "--run-id", "early"]) == 0
    assert versions(lake) == seen

    live = LiveRelease(lake)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.forget.commit_rewrites", killed_at(SAVES))
        with pytest.raises(KeyboardInterrupt):
            forget.main([*at_once, "--run-id", "killed"])
    assert state(lake) == before
    assert forget.main([*at_once, "--run-id", "first"]) == 3, "the live release and the live graph are as old as that"
    assert not live.refresh(), "no change to those who follow the tables"
    done = StepStatistics.read(lake, "maintenance", "first", "forget")
    for name, table in done["tables"].items():  # those before it were done by the run that was killed
        assert table["rows"] == (0 if name in ("pins", "boards") else told["tables"][name]["rows"]), name
    assert done["copies"] == told["copies"]
    assert done["copies"]["live"] == [f"release {live_release_id(lake)}", f"graph {live_graph_id(lake)}"]
    assert [release.release_id for release in list_releases(lake)] == [live_release_id(lake)]
    assert state(lake) == before

    make_live(lake, build(lake, "after"))
    taste(lake, "after", "--whole", interests=True)  # a base is a week old at most; here it is to go at once
    assert forget.main([*at_once, "--run-id", "second"]) == 0
    maintain_tables.main(["--home", lake.home, "--run-id", "upkeep", "--retention-hours", "0"])
    assert state(lake) == before
    deleted.versions = versions(lake)
    return deleted


def test_a_second_run_finds_nothing(forgotten: Story) -> None:
    from jobs import forget

    assert forget.main(["--home", forgotten.lake.home, "--forget-days", "0", "--run-id", "third"]) == 0
    done = StepStatistics.read(forgotten.lake, "maintenance", "third", "forget")
    assert {table["rows"] for table in done["tables"].values()} == {0} and done["copies"] == {"deleted": [], "live": []}
    assert versions(forgotten.lake) == forgotten.versions


GONE = (PIN, THEIRS, UNREADABLE, EMPTY, LAST, USER, BOARD)


def leaves(name: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The columns of plain values that a column is made of."""
    if pa.types.is_struct(column.type):
        for index, part in enumerate(column.type):
            yield from leaves(f"{name}.{part.name}", column.field(index))
    elif pa.types.is_map(column.type) or pa.types.is_list(column.type):
        yield from leaves(name, column.flatten() if not pa.types.is_map(column.type) else column.keys)
        if pa.types.is_map(column.type):
            yield from leaves(name, column.items)
    else:
        yield name, column


def without_tombstones(path: Path, table: pa.Table, of: str) -> pa.Table:
    """A file's rows and columns, of a table of the lake where `of` names one, that no id of what was deleted may be in."""
    if of == USERS.name:
        assert table.column_names == USERS.file_schema.names
        return table.drop_columns(["user_id"])
    if of in (PINS.name, BOARDS.name):
        tombstones = table.filter(table["deleted"])
        for name in (field.name for field in TABLES[of].file_schema if field.nullable):
            assert tombstones[name].null_count == tombstones.num_rows, f"{path}: {name} of a deletion"
        return table.filter(pc.invert(table["deleted"]))
    blank = of == QUARANTINE.name and table["image_uri"].null_count == table["source_sha256"].null_count == table.num_rows
    return (
        table.drop_columns(["pin_id"]) if blank and "stage=land" in path.parts else table
    )  # the reason beside it, and no more


def traces(home: Path, path: Path, vectors: list[Floats]) -> list[str]:
    """What a file holds of the pin and the user."""
    parts = path.relative_to(home).parts
    in_log = "_delta_log" in parts  # an id may be the least or the greatest of a file there, for as long as the log goes back
    if path.suffix != ".parquet":
        data, ids = path.read_bytes(), () if in_log else GONE
        found = [f"the word {word}" for word in WORDS if word.encode() in data.lower()]
        found += ["a vector" for vector in vectors if vector.tobytes() in data]
        return found + [f"the id {of}" for of in ids if of.to_bytes(8, "little") in data or str(of).encode() in data]
    table = pq.ParquetFile(path).read()
    if not in_log:
        table = without_tombstones(path, table, parts[1] if parts[0] == "tables" else "")
    found = []
    for column in table.column_names:
        for name, values in leaves(column, table[column].combine_chunks()):
            if pa.types.is_integer(values.type) and not in_log and np.isin(values.drop_null().to_numpy(), GONE).any():
                found.append(f"{name}: an id")
            if pa.types.is_string(values.type) and any(word in str(values.to_pylist()).lower() for word in WORDS):
                found.append(f"{name}: a word")
            if pa.types.is_float32(values.type) and len(values) and len(values) % len(vectors[0]) == 0:
                rows_ND = values.to_numpy(zero_copy_only=False).reshape(-1, len(vectors[0]))
                found += [f"{name}: a vector" for vector in vectors if (rows_ND == vector).all(axis=1).any()]
    return found


def all_traces(lake: Lake, vectors: list[Floats]) -> dict[str, list[str]]:
    """What the files of a lake hold of the pin and the user, by the file's path in it."""
    home = Path(lake.home)
    files = [path for path in sorted(home.rglob("*")) if path.is_file()]
    return {str(path.relative_to(home)): held for path in files if (held := traces(home, path, vectors))}


def test_no_file_of_the_lake_holds_more_of_them_than_an_id_of_a_deletion(forgotten: Story) -> None:
    assert {path.suffix for path in Path(forgotten.lake.home).rglob("*")} >= {".parquet", ".npy", ".faiss", ".json"}
    assert all_traces(forgotten.lake, forgotten.vectors) == {}
    assert [row["user_id"] for row in rows(forgotten.lake, USERS)] == [USER]
    assert {row["pin_id"] for row in rows(forgotten.lake, PINS) if row["deleted"]} >= {PIN, THEIRS, UNREADABLE, LAST}


def test_traces_were_found_where_there_were_some(forgotten: Story, story: Story, tmp_path: Path) -> None:
    """What the test above looks for, it finds: in files as the programs had written them."""
    tables = [name for name in TABLES if name not in ("users", "nights", "releases", "shadow_turns")]
    for folder in (
        *(f"tables/{name}/" for name in tables),
        "releases/pins/",
        "graphs/",
        "training/",
        "training/conversations/",
    ):
        assert any(path.startswith(folder) for path in forgotten.held), folder
    told = {said for held in forgotten.held.values() for said in held}
    assert told >= {"title: a word", "image_uri: a word", "embedding: a vector", "pin_id: an id", "user_id: an id"}
    pq.write_table(
        pa.table({"pins": [[1, PIN]], "embedding": [story.vectors[0]], "title": ["A Quokka"]}), tmp_path / "a.parquet"
    )
    assert traces(tmp_path, tmp_path / "a.parquet", story.vectors) == ["pins: an id", "embedding: a vector", "title: a word"]
    np.save(tmp_path / "ids.npy", np.array([3, USER]))
    assert traces(tmp_path, tmp_path / "ids.npy", story.vectors) == [f"the id {USER}"]
    (tmp_path / "index.faiss").write_bytes(b"IxFl" + np.stack(story.vectors).tobytes())
    assert traces(tmp_path, tmp_path / "index.faiss", story.vectors) == ["a vector", "a vector"]


def test_readers_pass_and_an_old_night_run_again_brings_nothing_back(forgotten: Story, run_night: RunNight) -> None:
    from jobs import check_index

    lake = forgotten.lake
    assert read_candidate(lake, "after") == live_release_id(lake)
    assert check_index.main(["--home", lake.home, "--run-id", "after", "--max-p99-ms", "1000"]) == 0
    assert [graph.graph_id for graph in finished_graphs(lake)] == [live_graph_id(lake)]
    before = state(lake)
    for ds, run_id in ((ARRIVED, "again"), (DELETED, "again too")):
        assert run_night(lake, ds, run_id, folder=forgotten.exports, min_coverage=0.0) == 0
        (night,) = [row for row in rows(lake, NIGHTS) if row["run_id"] == run_id]
        assert night["encoded"] == 0 and night["landed"] == night["embedded"] + night["quarantined"]
    assert state(lake) == before
