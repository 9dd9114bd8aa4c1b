"""A lake of any number of pins as its nights left it, and the exports of the nights to come. Everything is made from a seed.

The lake is written through the library's own stager and commits, so that its files, statistics and log are those of real
nights; only its old vectors are random unit vectors, since nothing compares them. Day 1 has all pins; each later one changes
a share of them. Pins show a few hundred real JPEG files, each with a text of its own, so that contents are as many as pins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from embedding.contracts import (
    BOARDS,
    EMBEDDING_DIM,
    EXPORT_SCHEMAS,
    PIN_EMBEDDINGS,
    PINS,
    SAVES,
    SUCCESS_MARKER,
    TableContract,
    content_sha256,
    export_day_folder,
    pin_text,
)
from embedding.encoder.building import build_model
from embedding.encoder.config import load_config
from embedding.encoder.store import add_encoder
from embedding.tables.exports import judge_rows
from embedding.tables.lake import Lake, Replacement, partition_version, replace_partition
from embedding.tables.staging import MAX_ROWS_A_FILE, Stager

FIRST_DAY = date(2026, 1, 1)
PICTURES = 512
PINS_A_BOARD = 50
ROWS_A_STEP = 50_000

EDITED, NEW, MOVED, REPINNED, DELETED = "edited", "new", "moved", "repinned", "deleted"
SHARES = {EDITED: 0.50, NEW: 0.25, MOVED: 0.12, REPINNED: 0.08, DELETED: 0.05}
"""What a night's changes are: of the edited and the new pins the content is unknown, of the moved and repinned ones known."""

KNOWN_ONLY = {EDITED: 0.0, NEW: 0.0, MOVED: 1.0, REPINNED: 0.0, DELETED: 0.0}
"""Of a day whose pins were on another board before: nothing is encoded."""

_WORDS = ("amber", "basil", "cedar", "dune", "ember", "fern", "grove", "harbor", "indigo", "jasmine", "kiln", "linen", "meadow")

_TINY_MODEL = {
    "embed_dim": EMBEDDING_DIM,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Changes:
    """Rows of one day: which pin shows which content on which board, and which ones are deletions."""

    pin_id: np.ndarray
    content: np.ndarray
    board_id: np.ndarray
    deleted: np.ndarray

    def __len__(self) -> int:
        return len(self.pin_id)

    def steps(self, rows: int) -> Iterator[Changes]:
        """The rows in pieces of so many."""
        for start in range(0, len(self), rows):
            piece = slice(start, start + rows)
            yield Changes(self.pin_id[piece], self.content[piece], self.board_id[piece], self.deleted[piece])


@dataclass(frozen=True)
class Expected:
    """What a night must find, whatever it does to find it."""

    landed: int
    deleted: int
    encoded: int
    reused: int


def day_name(number: int) -> str:
    """The `ds` of day 1, 2, ..."""
    return (FIRST_DAY + timedelta(days=number - 1)).isoformat()


def write_tiny_encoder(folder: Path, seed: int = 1) -> Path:
    """An encoder so small that its forward pass costs next to nothing; returns its config's path. Its weights are random."""
    folder.mkdir(parents=True, exist_ok=True)
    path, weights = folder / "config.json", folder / "weights.safetensors"
    about = {"name": "tiny", "context_length": 16, "preprocess": {"size": 32}}
    path.write_text(json.dumps(about | {"model": _TINY_MODEL, "weights": [{"file": weights.name}]}), encoding="utf-8")
    torch.manual_seed(seed)
    model = build_model(load_config(path, absent_weights=[weights]))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    return path


class SyntheticLake:
    """A platform of `pins` pins: its lake below `folder`/lake, and its exports below `folder`/exports as they are made.

    Args:
        share: Of the pins, how many a day changes.
        shares: Of the changes, how many are of each kind.
        intrinsic: In how many dimensions vectors differ, but for a little noise; None for all of them, in which all pins are
            equally far from one another and no index finds near ones.
        files: Of how many files a day's rows are at least, in the tables and in its export.
    """

    def __init__(
        self,
        folder: Path,
        pins: int,
        *,
        share: float = 0.01,
        seed: int = 1,
        shares: Mapping[str, float] = SHARES,
        intrinsic: int | None = None,
        files: int = 1,
    ):
        self.lake, self.exports = Lake(str(folder / "lake")), folder / "exports"
        self._folder, self._pins, self._changed = folder, pins, round(pins * share)
        self._rng = np.random.default_rng(seed)
        self._shares = shares
        self._rows_a_file = min(MAX_ROWS_A_FILE, -(-self._changed // files)) if files > 1 else MAX_ROWS_A_FILE
        self._rows_a_step = min(ROWS_A_STEP, self._rows_a_file)
        self._axes = None if intrinsic is None else np.random.default_rng(seed).standard_normal((intrinsic, EMBEDDING_DIM))
        self._contents = pins
        """Contents are numbered; the number says picture and text."""
        self._shown = np.arange(pins)
        """The content that each pin shows; -1 once it is deleted. A pin's id is its place here, and 1."""
        self._image_sha256 = self._write_pictures()
        self.version = str(add_encoder(self.lake, write_tiny_encoder(folder / "encoder")))

    def write_history(self, days: int) -> None:
        """Lands and embeds days 1 to `days`, with random vectors."""
        self.lake.create_all()
        everything = Changes(
            np.arange(1, self._pins + 1), self._shown, self._boards(np.arange(self._pins)), np.zeros(self._pins, np.bool_)
        )
        self._write_day(1, everything)
        for number in range(2, days + 1):
            self._write_day(number, self._change()[0])

    def write_export(self, number: int) -> Expected:
        """The export of day `number`, and what its night is to count."""
        changes, counts = self._change()
        folder = Path(export_day_folder(str(self.exports), day_name(number)))
        rows = pa.Table.from_batches([self._export_rows(piece, number) for piece in changes.steps(self._rows_a_step)])
        tables = {
            "pins": rows,
            "boards": self._board_rows(changes, number),
            "saves": self._save_rows(changes, number),
        }
        for entity, table in tables.items():
            (folder / entity).mkdir(parents=True)
            for part, start in enumerate(range(0, max(1, len(table)), self._rows_a_file)):
                pq.write_table(table.slice(start, self._rows_a_file), folder / entity / f"part-{part}.parquet")
        (folder / SUCCESS_MARKER).touch()
        encoded, reused = counts[EDITED] + counts[NEW], counts[MOVED] + counts[REPINNED]
        return Expected(encoded + reused, counts[DELETED], encoded, reused)

    def _change(self) -> tuple[Changes, dict[str, int]]:
        """A day's changes, each pin at most once, and how many of each kind."""
        counts = {kind: round(self._changed * share) for kind, share in self._shares.items()}
        alive = self._rng.permutation(np.flatnonzero(self._shown >= 0))
        edited, moved, deleted, source = np.split(
            alive, np.cumsum([counts[EDITED], counts[MOVED], counts[DELETED], counts[REPINNED]])
        )[:4]
        fresh = np.arange(len(self._shown), len(self._shown) + counts[NEW] + counts[REPINNED])
        unknown = np.arange(self._contents, self._contents + counts[EDITED] + counts[NEW])
        self._contents += len(unknown)
        shown = np.concatenate([unknown[counts[EDITED] :], self._shown[source]])
        pins = np.concatenate([edited, moved, deleted, fresh])
        content = np.concatenate([unknown[: counts[EDITED]], self._shown[moved], np.full(counts[DELETED], -1), shown])
        self._shown = np.concatenate([self._shown, np.full(len(fresh), -1)])
        self._shown[pins] = content
        boards = self._boards(pins)
        boards[len(edited) : len(edited) + len(moved)] += 1
        order = self._rng.permutation(len(pins))
        return Changes((pins + 1)[order], content[order], boards[order], (content < 0)[order]), counts

    def _boards(self, pins: np.ndarray) -> np.ndarray:
        return pins // PINS_A_BOARD + 1

    def _write_pictures(self) -> list[bytes]:
        """Small JPEGs of noise; returns the SHA-256 of each."""
        folder = self._folder / "pictures"
        folder.mkdir(parents=True)
        hashes = []
        for number in range(PICTURES):
            coarse = self._rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            file = folder / f"{number}.jpg"
            Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(file, quality=85)
            hashes.append(sha256(file.read_bytes()).digest())
        return hashes

    def _text(self, content: int) -> tuple[str, str, list[str]]:
        words = [_WORDS[(content // step) % len(_WORDS)] for step in (1, 13, 169)]
        return f"{words[0]} {words[1]} {content}", f"How we made a {words[2]} {words[0]} corner", words

    def _export_rows(self, changes: Changes, number: int) -> pa.RecordBatch:
        texts = [self._text(content) if content >= 0 else (None, None, None) for content in changes.content.tolist()]
        pictures = (self._folder / "pictures").as_uri()
        uris = [f"{pictures}/{content % PICTURES}.jpg" if content >= 0 else None for content in changes.content.tolist()]
        times = [_moment(number)] * len(changes)
        values = {
            "pin_id": changes.pin_id,
            "board_id": changes.board_id,
            "user_id": changes.board_id // 4 + 1,
            "image_uri": uris,
            "title": [text[0] for text in texts],
            "description": [text[1] for text in texts],
            "tags": [text[2] for text in texts],
            "created_at": times,
            "updated_at": times,
            "deleted": changes.deleted,
        }
        schema = EXPORT_SCHEMAS["pins"]
        return pa.RecordBatch.from_arrays([pa.array(values[field.name], field.type) for field in schema], schema=schema)

    def _board_rows(self, changes: Changes, number: int) -> pa.Table:
        boards = np.unique(changes.board_id)
        values = {
            "board_id": boards,
            "user_id": boards // 4 + 1,
            "title": [f"board {board}" for board in boards.tolist()],
            "created_at": [_moment(number)] * len(boards),
            "deleted": np.zeros(len(boards), np.bool_),
        }
        return pa.table(values, EXPORT_SCHEMAS["boards"])

    def _save_rows(self, changes: Changes, number: int) -> pa.Table:
        alive = ~changes.deleted
        values = {
            "user_id": changes.board_id[alive] // 4 + 1,
            "pin_id": changes.pin_id[alive],
            "board_id": changes.board_id[alive],
            "saved_at": [_moment(number)] * int(alive.sum()),
            "deleted": np.zeros(int(alive.sum()), np.bool_),
        }
        return pa.table(values, EXPORT_SCHEMAS["saves"])

    def _write_day(self, number: int, changes: Changes) -> None:
        """What a night of these changes would have left in the tables."""
        ds = day_name(number)
        landed = {"export_sha256": sha256(ds.encode()).hexdigest(), "run_id": f"night-{ds}"}
        with (
            self._stager(PINS, ds=ds) as pins,
            self._stager(BOARDS, ds=ds) as boards,
            self._stager(SAVES, ds=ds) as saves,
            self._stager(PIN_EMBEDDINGS, ds=ds) as vectors,
        ):
            for piece in changes.steps(self._rows_a_step):
                rows = judge_rows("pins", self._export_rows(piece, number))
                pins.add(_with_text(rows, landed))
                saves.add(_with_text(self._save_rows(piece, number), landed))
                vectors.add(self._vector_rows(rows.filter(pc.invert(rows["deleted"])), number))
            boards.add(_with_text(self._board_rows(changes, number), landed))
            for contract, stager in ((BOARDS, boards), (SAVES, saves), (PINS, pins), (PIN_EMBEDDINGS, vectors)):
                stager.flush()
                partition = self._partition(contract, ds)
                seen = partition_version(self.lake.open(contract), partition)
                r = Replacement(contract, partition, stager.files, seen)
                replace_partition(self.lake, contract, r.partition, r.staged, expected_version=seen, run_id=landed["run_id"])

    def _partition(self, contract: TableContract, ds: str) -> dict[str, str | None]:
        values = {"ds": ds, "embedding_version": self.version}
        return {name: values[name] for name in contract.partition_by}

    def _stager(self, contract: TableContract, ds: str) -> Stager:
        return Stager(self.lake.table_uri(contract), contract, self._partition(contract, ds), self._rows_a_file)

    def _vector_rows(self, rows: pa.RecordBatch, number: int) -> pa.Table:
        texts = zip(*(rows[name].to_pylist() for name in ("title", "description", "tags")), strict=True)
        pictures = [int(uri.rpartition("/")[2].removesuffix(".jpg")) for uri in rows["image_uri"].to_pylist()]
        hashes = [content_sha256(self._image_sha256[p], pin_text(*text)) for p, text in zip(pictures, texts, strict=True)]
        vectors_ND = self._rng.standard_normal((rows.num_rows, EMBEDDING_DIM), dtype=np.float32)
        if self._axes is not None:
            places = self._rng.standard_normal((rows.num_rows, len(self._axes)), dtype=np.float32)
            vectors_ND = places @ self._axes.astype(np.float32) + 0.3 * vectors_ND
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        offsets = np.arange(0, vectors_ND.size + 1, EMBEDDING_DIM, dtype=np.int32)
        yes = np.ones(rows.num_rows, np.bool_)
        night = {"encoded_by": f"night-{day_name(number)}", "run_id": f"night-{day_name(number)}"}
        columns = {
            "pin_id": rows["pin_id"],
            "source_sha256": rows["source_sha256"],
            "content_sha256": pa.array(hashes, pa.string()),
            "embedding": pa.ListArray.from_arrays(offsets, vectors_ND.ravel()),
            "has_image": yes,
            "has_text": yes,
        }
        return _with_text(pa.table(columns), night)


def _moment(number: int) -> datetime:
    return datetime.combine(FIRST_DAY + timedelta(days=number - 1), datetime.min.time(), UTC)


def _with_text(rows: pa.Table | pa.RecordBatch, values: dict[str, str]) -> pa.Table:
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    for name, value in values.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), table.num_rows))
    return table
