"""Near-duplicates, bags, files and leaks of a training set, without an engine."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from embedding.contracts import Reason
from embedding.encoder import bags, pictures
from embedding.encoder.limits import ImageLimits
from embedding.encoder.training_set import (
    BAGS_SCHEMA,
    PINS_SCHEMA,
    Manifest,
    SetRecipe,
    TrainingSetError,
    add_texts,
    leaks,
    make_set_id,
    read_manifest,
    read_pins,
    read_training_set,
    runs_of,
    set_uri,
    stream_bags,
    verify_files,
    write_manifest,
    write_shards,
    write_training_set,
)
from embedding.tables.lake import Lake
from tests.encoder.written_set import MANIFEST


def drawing(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Ten shapes on white."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for _ in range(10):
        x, y = chance.randrange(size[0] - 60), chance.randrange(size[1] - 60)
        colour = tuple(chance.randrange(200) for _ in range(3))
        pen.ellipse((x, y, x + chance.randrange(20, 60), y + chance.randrange(20, 60)), fill=colour)
    return image


def flag(*stripes: str) -> Image.Image:
    image = Image.new("RGB", (90, 60))
    for number, colour in enumerate(stripes):
        image.paste(colour, (0, number * 60 // len(stripes), 90, 60))
    return image


def outline(x: int) -> Image.Image:
    """A thin line on white."""
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).line((x, 20, x, 90), fill="black", width=2)
    return image


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def near(a: Image.Image, b: Image.Image) -> bool:
    signatures = [pictures.signature(pictures.small_picture(image, 256)) for image in (a, b)]
    gradients, thumbnails = (np.array([np.frombuffer(s, np.uint8) for s in side]) for side in zip(*signatures, strict=True))
    found = len(pictures.near_duplicate_pairs(gradients, thumbnails)[0]) == 1
    if found:
        assert set(pictures.bucket_keys(gradients, thumbnails)[0]) & set(pictures.bucket_keys(gradients, thumbnails)[1])
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_saved_again_is_a_near_duplicate(seed: int) -> None:
    image = drawing(seed)
    assert near(image, image.resize((200, 150)))
    assert near(image, as_jpeg(image, 60).convert("RGB"))
    assert near(image, ImageEnhance.Brightness(image).enhance(1.03))
    assert near(image, ImageEnhance.Brightness(image).enhance(0.97))


def test_other_pictures_are_not_however_flat_or_thin() -> None:
    assert not near(drawing(1), drawing(2))
    assert not near(flag("black", "red", "gold"), flag("blue", "white", "red"))
    assert not near(outline(30), outline(150))


def planted_signatures(count: int) -> tuple[pictures.Bytes, pictures.Bytes]:
    """Random signatures, the second half near-duplicates of the first at up to the limits."""
    chance = np.random.default_rng(0)
    gradients = chance.integers(0, 256, (count, 32), np.uint8)
    thumbnails = chance.integers(60, 190, (count, 192)).astype(np.uint8)
    bits = np.unpackbits(gradients, axis=1)
    moved = thumbnails.astype(int)
    for row in range(count):
        bits[row, chance.choice(256, pictures.MAX_GRADIENT_BITS, replace=False)] ^= 1
        moved[row] += chance.permutation(np.r_[np.full(96, 20), np.zeros(96)].astype(int)) * chance.choice([-1, 1])
    assert np.abs(moved - thumbnails).sum(axis=1).max() <= pictures.MAX_THUMBNAIL_SUM
    return np.concatenate([gradients, np.packbits(bits, axis=1)]), np.concatenate([thumbnails, moved.astype(np.uint8)])


def in_pieces(table: pa.Table, rows: int) -> Iterator[pa.RecordBatch]:
    yield from table.combine_chunks().to_batches(max_chunksize=rows)


def linked(table: pa.Table, rows: int, max_bucket: int = pictures.MAX_BUCKET) -> tuple[set[frozenset[str]], int]:
    links = pa.Table.from_batches(pictures.link_near_duplicates(in_pieces(table, rows), max_bucket), pictures.LINKS).to_pylist()
    pairs = {frozenset((link["content"], link["other"])) for link in links if link["content"]}
    return pairs, sum(link["uncompared"] or 0 for link in links)


def bucketed(gradients: pictures.Bytes, thumbnails: pictures.Bytes) -> pa.Table:
    rows = [
        {"content": f"{number:04d}", "gradient": gradient.tobytes(), "thumbnail": thumbnail.tobytes()}
        for number, (gradient, thumbnail) in enumerate(zip(gradients, thumbnails, strict=True))
    ]
    spread = pictures.spread_over_buckets([pa.RecordBatch.from_pylist(rows)])
    return pa.Table.from_batches(spread, pictures.BUCKETED).sort_by([("bucket", "ascending"), ("content", "ascending")])


def test_buckets_find_every_near_duplicate_however_the_rows_are_cut() -> None:
    found = [linked(bucketed(*planted_signatures(60)), rows) for rows in (1 << 20, 64, 7)]
    assert found[0] == ({frozenset((f"{n:04d}", f"{n + 60:04d}")) for n in range(60)}, 0)
    assert found[1] == found[2] == found[0]


def test_a_bucket_of_look_alikes_gives_few_links_and_says_what_it_left_out() -> None:
    same = np.repeat(np.full((1, 32), 7, np.uint8), 50, axis=0), np.full((50, 192), 100, np.uint8)
    everything = bucketed(*same)
    one_bucket = everything.filter(pa.compute.equal(everything["bucket"], everything["bucket"][0]))
    assert linked(one_bucket, 1 << 20) == ({frozenset(("0000", f"{n:04d}")) for n in range(1, 50)}, 0)
    assert [linked(one_bucket, rows, 20) for rows in (7, 1 << 20)] == [linked(one_bucket, 20, 20)] * 2
    assert linked(one_bucket, 20, 20)[1] == 30


def test_pictures_are_made_small_and_a_bad_one_has_its_reason(tmp_path: Path) -> None:
    drawing(1, (600, 300)).save(tmp_path / "wide.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "wide.png").read_bytes()[:900])
    uris = pa.RecordBatch.from_pydict({"image_uri": [str(tmp_path / name) for name in ("wide.png", "cut.png", "none.png")]})
    hashed = next(pictures.hash_pictures([uris], ImageLimits())).to_pylist()
    assert [row["reason"] for row in hashed] == [None, None, Reason.MISSING_IMAGE]
    contents = [{"content": row["content"], "image_uri": row["image_uri"]} for row in hashed[:2]]
    contents.append(contents[0] | {"content": "of other bytes"})
    read = next(pictures.read_pictures([pa.RecordBatch.from_pylist(contents)], 128, ImageLimits())).to_pylist()
    assert [row["reason"] for row in read] == [None, Reason.TRUNCATED_IMAGE, Reason.FETCH_FAILED]
    with Image.open(io.BytesIO(read[0]["picture"])) as small:
        assert (small.format, small.mode, small.size) == ("PNG", "RGB", (128, 64))
    assert (len(read[0]["gradient"]), len(read[0]["thumbnail"])) == (32, 192)
    assert read[1]["picture"] is None is read[1]["thumbnail"]


def boards_of(*sizes: int) -> list[dict[str, Any]]:
    member = {"duplicate_group": 0, "weight": 1.0}
    return [
        {
            "board_id": board,
            "owner": -board,
            "category": "animals",
            "pins": [{"pin_id": 1000 * board + n, **member} for n in range(size)],
        }
        for board, size in enumerate(sizes, 1)
    ]


def dealt(boards: list[dict[str, Any]], bag_size: int = 16) -> pa.Table:
    batch = pa.RecordBatch.from_pylist(boards, schema=bags.BOARDS)
    table = pa.Table.from_batches(bags.deal_bags([batch], bag_size, seed=5), bags.DEALT)
    return table.sort_by([("board_id", "ascending"), ("bag", "ascending")])


def test_each_pin_of_a_board_is_in_one_bag_and_bags_are_of_a_size() -> None:
    boards = boards_of(1, 2, 16, 17, 33, 100)
    found = dealt(boards).to_pylist()
    sizes: dict[int, list[int]] = {}
    for bag in found:
        sizes.setdefault(bag["board_id"], []).append(len(bag["pins"]))
        assert bag["owner"] == -bag["board_id"]
        assert 0 <= bag["place"] < 2**bags.PLACE_BITS
    assert sizes == {1: [1], 2: [2], 3: [16], 4: [9, 8], 5: [11, 11, 11], 6: [15, 15, 14, 14, 14, 14, 14]}
    members = [pin["pin_id"] for bag in found for pin in bag["pins"]]
    assert sorted(members) == [pin["pin_id"] for board in boards for pin in board["pins"]]
    assert members != sorted(members)


def test_the_order_of_rows_and_of_a_board_changes_no_bag() -> None:
    boards = boards_of(5, 40, 3)
    turned = [board | {"pins": board["pins"][::-1]} for board in boards[::-1]]
    assert dealt(boards) == dealt(turned)


def candidates_of(*rows: tuple[int, int, int, list[int]]) -> pa.Table:
    names = ("pin_id", "duplicate_group", "user_id", "board_ids")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) | {"weight": 1.0} for row in rows], schema=bags.CANDIDATES)


def test_negatives_are_of_other_boards_owners_and_groups() -> None:
    bag = dealt(boards_of(2))  # board 1, owner -1, duplicate group 0
    bad = [(1, 1, 9, [1]), (2, 2, -1, [7]), (3, 0, 9, [7]), (4, 4, 9, [7, 1])]
    good = [(number, number, 9, [7]) for number in range(10, 20)]
    found = bags.choose_negatives(bag, candidates_of(*bad, *good), count=4, seed=1)
    assert found.schema.names == bags.CHOSEN.names
    chosen = [pin["pin_id"] for pin in found["negatives"][0].as_py()]
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(range(10, 20))
    assert found == bags.choose_negatives(bag, candidates_of(*good[::-1], *bad), count=4, seed=1)
    assert bags.choose_negatives(bag, candidates_of(*bad, good[0]), count=4, seed=1)["negatives"][0].as_py()[0]["pin_id"] == 10
    assert bags.choose_negatives(bag, candidates_of(), count=4, seed=1)["negatives"].to_pylist() == [[]]
    assert bags.choose_negatives(bag.slice(0, 0), candidates_of(*good), count=4, seed=1).num_rows == 0


def items(count: int) -> pa.Table:
    """Bags of two pins and a negative, thirty to a shard."""
    rows = [
        {"shard": bag // 30, "place": bag, "board_id": bag, "bag": 0, "category": "food", "position": position}
        | {"negative": position == 2, "pin_id": 10 * bag + position, "duplicate_group": bag, "weight": 0.5}
        | {"picture": None if position else b"png", "text": f"pin {position}"}
        for bag in range(count)
        for position in range(3)
    ]
    return pa.Table.from_pylist(rows, schema=bags.ITEMS)


def test_bags_are_written_and_streamed_as_they_came_however_the_rows_were_cut(tmp_path: Path) -> None:
    lake, written = Lake(str(tmp_path)), []
    for rows in (4, 1 << 20):
        root = set_uri(lake, f"of-{rows}")
        files = write_shards(bags.assemble_bags(in_pieces(items(70), rows)), root, "train", BAGS_SCHEMA)
        written.append(pa.Table.from_batches(files).to_pylist())
    assert written[0] == written[1]
    assert [(file["path"], file["rows"]) for file in written[0]] == [
        ("train/part-00000.parquet", 30),
        ("train/part-00001.parquet", 30),
        ("train/part-00002.parquet", 10),
    ]
    manifest = Manifest.from_json(replace(MANIFEST, set_id="of-4", files=written[0]).to_json(), "here")
    streamed = list(stream_bags(lake, manifest))
    assert [batch.num_rows for batch in streamed] == [16, 14, 16, 14, 10]
    found = [row for batch in streamed for row in batch.to_pylist()]
    assert [row["board_id"] for row in found] == list(range(70))
    assert [len(row["pins"]) for row in found] == [2] * 70
    assert [pin["pin_id"] for pin in found[3]["negatives"]] == [32]
    assert (found[3]["pins"][0]["picture"], found[3]["pins"][1]["picture"]) == (b"png", None)
    assert [row["board_id"] for batch in stream_bags(lake, manifest, [2]) for row in batch.to_pylist()] == list(range(60, 70))
    assert verify_files(lake, manifest) == []
    damaged = Path(set_uri(lake, "of-4")) / "train" / "part-00001.parquet"
    damaged.write_bytes(damaged.read_bytes() + b" ")
    (damaged.parent / "part-00002.parquet").unlink()
    assert [fault.split(":")[0] for fault in verify_files(lake, manifest)] == [
        "train/part-00001.parquet is damaged",
        "train/part-00002.parquet is missing",
    ]


def test_a_run_longer_than_allowed_is_cut_and_numbered() -> None:
    table = pa.table({"key": [1, 1, 1, 1, 1, 2, 3, 3]})
    for rows in (1, 3, 8):
        found = [(run["key"][0].as_py(), run.num_rows, part) for run, part in runs_of(in_pieces(table, rows), ["key"], 2)]
        assert found == [(1, 2, 0), (1, 2, 1), (1, 1, 2), (2, 1, 0), (3, 2, 0)]


def pin(pin_id: int, split: str, **values: Any) -> dict[str, Any]:
    own = {"user_id": pin_id, "board_id": pin_id, "board_ids": [pin_id], "duplicate_group": pin_id, "text": f"pin {pin_id}"}
    return {"pin_id": pin_id, "split": split, "category": "x", "picture": b"p", "thumbnail": None, **own, **values}


def found_leaks(*rows: dict[str, Any]) -> list[str]:
    return leaks(pa.Table.from_pylist(list(rows), schema=PINS_SCHEMA))


def test_leaks_of_each_kind_are_found() -> None:
    train = pin(1, "train", board_ids=[1, 11])
    assert found_leaks(train, pin(2, "test"), pin(3, "validation")) == []
    assert found_leaks(train, pin(2, "test", user_id=1)) == ["creator 1 is in test and train"]
    assert found_leaks(train, pin(2, "test", board_id=11)) == ["board 11 is in test and train"]
    assert found_leaks(train, pin(2, "validation", board_ids=[2, 1])) == ["board 1 is in train and validation"]
    assert found_leaks(train, pin(2, "test", duplicate_group=1)) == ["duplicate group 1 is in test and train"]
    (same,) = found_leaks(train, pin(2, "test", text="pin 1"))
    assert same.endswith("with text 'pin 1' is in test and train")
    assert len(found_leaks(pin(1, "train", picture=None), pin(2, "test", picture=None, text="pin 1"))) == 1
    assert found_leaks(train, pin(2, "train", user_id=1, board_ids=[11]), pin(3, "dropped", user_id=1, board_ids=[1])) == []


def test_texts_are_those_that_the_encoder_reads() -> None:
    row = {
        "pin_id": 1,
        "user_id": 2,
        "board_id": 3,
        "image_uri": None,
        "title": " Red ",
        "description": None,
        "tags": ["a", "b"],
    }
    assert next(add_texts([pa.RecordBatch.from_pylist([row])])).to_pylist()[0]["text"] == "Red. a, b"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"bag_size": 1}, "bag_size must be at least 2"), ({"held_out_share": 0.9, "validation_share": 0.1}, "to train on")],
)
def test_parameters_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingSetError, match=message):
        SetRecipe(**wrong)


def test_a_sets_id_changes_with_whatever_decides_its_content() -> None:
    def set_id(recipe: SetRecipe | None = None, version: int = 1, days: tuple[str, ...] = ("a",), max_bytes: int = 1000) -> str:
        return make_set_id("2026-11-20", days, {"pins": version}, recipe or SetRecipe(), ImageLimits(max_bytes))

    ids = {set_id(), set_id(SetRecipe(salt="other")), set_id(version=2), set_id(days=("a", "b")), set_id(max_bytes=2000)}
    assert len(ids) == 5
    assert set_id() == set_id(SetRecipe())
    assert set_id().startswith("2026-11-20-")


def test_a_manifest_is_read_as_written_and_faults_are_named(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(TrainingSetError, match="no training set 2026"):
        read_manifest(lake, MANIFEST.set_id)
    write_manifest(lake, MANIFEST)
    assert read_manifest(lake, MANIFEST.set_id) == MANIFEST
    assert read_pins(lake, MANIFEST, ["pin_id"]).num_rows == 0
    for bad, message in ((b"{}", "not a training set's manifest"), (b'{"format": 99}', "format 99, this reader knows 1")):
        with pytest.raises(TrainingSetError, match=message):
            Manifest.from_json(bad, "manifest.json")
    with pytest.raises(TrainingSetError, match="not a training set's id"):
        set_uri(lake, "../pins")
    with pytest.raises(TrainingSetError, match="run nightly has made no training set"):
        read_training_set(lake, "nightly")
    write_training_set(lake, "nightly", MANIFEST.set_id)
    assert read_training_set(lake, "nightly") == MANIFEST.set_id


def test_row_groups_bound_what_a_reader_holds(tmp_path: Path) -> None:
    rows = [pin(number, "train") for number in range(600)]
    table = pa.Table.from_pylist(rows, schema=PINS_SCHEMA).append_column("shard", pa.array([0] * 600))
    (file,) = write_shards(in_pieces(table, 100), str(tmp_path), "pins", PINS_SCHEMA)
    with pq.ParquetFile(tmp_path / file.to_pylist()[0]["path"]) as parquet:
        assert [parquet.metadata.row_group(n).num_rows for n in range(3)] == [256, 256, 88]
        assert parquet.schema_arrow.equals(PINS_SCHEMA)
