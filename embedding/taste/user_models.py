"""Where the models of users of a lake lie, which one is live, and the staged histories that one learns from.

user_models/<embedding_version>/<user_model>/model.safetensors   its weights
user_models/<embedding_version>/<user_model>/manifest.json       written last; the file's SHA-256, what it learned from, figures
user_models/<embedding_version>/LIVE                             names the model that users are read by, replaced at once

A model is one embedding version's: it reads its vectors and answers in their space. Its name is a fingerprint of its weights,
its shape and that version. Histories are staged as Parquet: a row a user, the saves newest first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save

from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste.foresight import Batches, Pool, hold_out
from embedding.taste.interests import Floats
from embedding.taste.sequence import History, UserModel, UserModelError, UserSetting

WEIGHTS, MANIFEST, LIVE = "model.safetensors", "manifest.json", "LIVE"
FORMAT = 1
USERS_A_GROUP = 128
"""Rows of a row group of staged histories: what is read, and learned from, at once."""

STAGED = pa.schema(
    [
        ("user_id", pa.int64()),
        ("pins", pa.list_(pa.int64())),
        ("saved", pa.list_(pa.int64())),
        ("saves", pa.list_(pa.int64())),
        ("vectors", pa.list_(pa.binary())),
    ]
)
"""A user's history: pins, minutes since 1970, how many saves each pin has among all that are staged, bytes of its float32."""
STAGED_PINS = pa.schema([("pin_id", pa.int64()), ("saves", pa.int64()), ("embedding", pa.binary())])
"""Pins drawn at random, as in STAGED."""


@dataclass(frozen=True)
class UserModelManifest:
    """What a model learned from, and what it is worth. Its file is written last: without it there is no model.

    ds: The last day of data. users: How many it learned from. mean, start, learned: recall@10 of held-out saves, of the decayed
    mean, of where learning started and of where it ended. round: The round of learning that this model is; 0 for the start.
    """

    version: str
    embedding_version: str
    ds: str
    setting: dict[str, Any]
    users: int
    judged: int
    mean: float
    start: float
    learned: float
    round: int
    size_bytes: int
    sha256: str
    built_by: str
    built_at: str
    format: int = FORMAT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> UserModelManifest:
        """Raises UserModelError where it is none of this format."""
        try:
            values = json.loads(data)
            if values.get("format") != FORMAT:
                raise UserModelError(f"a model of users of format {values.get('format')}, this reads {FORMAT}")
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserModelError(f"no manifest of a model of users: {error}") from None


@dataclass(frozen=True, eq=False)
class UserEncoder:
    """A model opened from the lake, and the versions that name it and the vectors that it reads."""

    version: str
    embedding_version: str
    model: UserModel

    def encode(self, histories: Sequence[History], embedding_version: str) -> Floats:
        """Unit vectors (B, D) of users, each of one save or more.

        embedding_version: Of the histories' vectors. Raises UserModelError where it is another than the model reads.
        """
        if embedding_version != self.embedding_version:
            raise UserModelError(
                f"model {self.version} reads vectors of {self.embedding_version}, and was given {embedding_version}: "
                "their products mean nothing. Train one for it: jobs/train_users.py"
            )
        return self.model.encode(histories)


def models_uri(lake: Lake, embedding_version: str) -> str:
    return f"{lake.home}/user_models/{embedding_version}"


def pack(model: UserModel, embedding_version: str) -> tuple[str, bytes]:
    """The name of a model and the bytes of its weights."""
    weights: bytes = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    said = json.dumps([embedding_version, asdict(model.setting), FORMAT], sort_keys=True).encode()
    return f"users-{sha256(said + weights).hexdigest()[:12]}", weights


def write_model(lake: Lake, manifest: UserModelManifest, weights: bytes) -> None:
    """Writes a model, its manifest last."""
    folder = f"{models_uri(lake, manifest.embedding_version)}/{manifest.version}"
    storage.write_atomic(f"{folder}/{WEIGHTS}", weights)
    storage.write_atomic(f"{folder}/{MANIFEST}", manifest.to_json())


def read_user_manifest(lake: Lake, embedding_version: str, version: str) -> UserModelManifest:
    """Raises UserModelError where there is no such model, or it is not finished."""
    uri = f"{models_uri(lake, embedding_version)}/{version}/{MANIFEST}"
    if not storage.exists(uri):
        raise UserModelError(f"there is no finished model {version} under {models_uri(lake, embedding_version)}")
    return UserModelManifest.from_json(storage.read_bytes(uri))


def publish_model(lake: Lake, embedding_version: str, version: str, ds: str) -> None:
    """Makes a finished model the live one of its embedding version, at once; or says of the live one that it was looked at.

    ds: The last day of data that was looked at. Models but this and the one before are deleted.
    """
    root, before = models_uri(lake, embedding_version), live_user_model(lake, embedding_version)
    read_user_manifest(lake, embedding_version, version)
    storage.write_atomic(f"{root}/{LIVE}", json.dumps({"user_model": version, "looked_at": ds}).encode())
    for name in storage.folders(root):
        if before != version and name not in (version, before):
            storage.delete_quietly(f"{root}/{name}/{MANIFEST}")
            storage.delete_folder(f"{root}/{name}")


def live_user_model(lake: Lake, embedding_version: str) -> str | None:
    """The name of the live model of users under an encoder; None before the first."""
    return _pointer(lake, embedding_version).get("user_model")


def looked_at(lake: Lake, embedding_version: str) -> str | None:
    """The last day of data at which the live model was trained, or found to be the best still; None before the first."""
    return _pointer(lake, embedding_version).get("looked_at")


def _pointer(lake: Lake, embedding_version: str) -> dict[str, str]:
    uri = f"{models_uri(lake, embedding_version)}/{LIVE}"
    return dict(json.loads(storage.read_bytes(uri))) if storage.exists(uri) else {}


def delete_user_models(lake: Lake, embedding_version: str) -> None:
    """Deletes all models of an embedding version, the pointer first."""
    storage.delete_quietly(f"{models_uri(lake, embedding_version)}/{LIVE}")
    storage.delete_folder(models_uri(lake, embedding_version))


def open_user_model(lake: Lake, embedding_version: str, version: str) -> UserEncoder:
    """A model whose weights are what its manifest says. Raises UserModelError where it is missing, damaged or another's."""
    manifest = read_user_manifest(lake, embedding_version, version)
    weights = storage.read_bytes(f"{models_uri(lake, embedding_version)}/{version}/{WEIGHTS}")
    if sha256(weights).hexdigest() != manifest.sha256:
        raise UserModelError(f"model {version} of users is damaged: train it again (jobs/train_users.py --every-days 0)")
    if manifest.embedding_version != embedding_version:
        raise UserModelError(f"model {version} reads vectors of {manifest.embedding_version}, not of {embedding_version}")
    model = UserModel(UserSetting(**manifest.setting))
    model.load_state_dict(load(weights))
    return UserEncoder(version, embedding_version, model.eval())


@lru_cache(maxsize=2)
def worker_user_model(home: str, embedding_version: str, version: str, threads: int) -> UserEncoder:
    """As `open_user_model`, once a process: for executors, where a task follows the other. It keeps `threads` cores busy."""
    torch.set_num_threads(threads)
    return open_user_model(Lake(home), embedding_version, version)


# -- staged histories ------------------------------------------------------------------------------------------------------


def histories_of(batch: pa.RecordBatch | pa.Table, all_saves: int = 1) -> list[History]:
    """Users' histories from rows of STAGED; `saves` may be missing where nothing is learned."""
    columns = [batch.column(name).to_pylist() for name in ("user_id", "pins", "saved", "vectors")]
    counts = batch.column("saves").to_pylist() if "saves" in batch.schema.names else [[0] * len(pins) for pins in columns[1]]
    found = []
    for user, pins, saved, vectors, saves in zip(*columns, counts, strict=True):
        vectors_ND = np.frombuffer(b"".join(vectors), np.float32).reshape(len(pins), -1)
        share_N = (np.array(saves) / all_saves).astype(np.float32)
        found.append(History(user, np.array(pins, np.int64), np.array(saved, np.int64), vectors_ND, vectors_ND, share_N))
    return found


def pool_of(pins: pa.Table, drawn_from: int, all_saves: int) -> Pool:
    """The pool of pins drawn at random out of so many, from rows of STAGED_PINS."""
    pins = pins.sort_by("pin_id")
    vectors_PD = np.frombuffer(b"".join(pins["embedding"].to_pylist()), np.float32).reshape(len(pins), -1)
    share_P = (pins["saves"].to_numpy() / all_saves).astype(np.float32)
    return Pool(pins["pin_id"].to_numpy(), vectors_PD, share_P, drawn_from)


@dataclass(frozen=True)
class StagedHistories:
    """Files of STAGED, read a row group at a time."""

    uris: Sequence[str]
    all_saves: int

    def groups(self) -> list[tuple[str, int]]:
        """(file, number) of all row groups."""
        found = []
        for uri in sorted(self.uris):
            filesystem, path = storage.filesystem_of(uri)
            with filesystem.open_input_file(path) as file:
                found += [(uri, number) for number in range(pq.ParquetFile(file).num_row_groups)]
        return found

    def read(self, uri: str, group: int) -> list[History]:
        filesystem, path = storage.filesystem_of(uri)
        with filesystem.open_input_file(path) as file:
            return histories_of(pq.ParquetFile(file).read_row_group(group), self.all_saves)

    def first(self, most: int) -> Iterator[History]:
        """The first users of all, in the files' order."""
        for uri, group in self.groups():
            for history in self.read(uri, group):
                if most <= 0:
                    return
                most -= 1
                yield history

    def batches(self) -> Batches:
        """Row groups in an order that is drawn; of each history what is not held out."""
        groups = self.groups()

        def batches(rng: np.random.Generator) -> Iterator[list[History]]:
            for number in rng.permutation(len(groups)):
                yield [hold_out(history)[0] for history in self.read(*groups[number])]

        return batches
