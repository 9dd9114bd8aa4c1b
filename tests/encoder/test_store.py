"""The lake's encoders: copied whole, checked each time they are opened, found by whatever names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedding.encoder.config import ConfigError, embedding_version, load_config
from embedding.encoder.store import (
    EncoderStoreError,
    Role,
    add_encoder,
    candidate_version,
    fresh_versions,
    mark_abandoned,
    mark_fresh,
    mark_retired,
    newest_idle_version,
    open_encoder,
    resolve_encoder,
    stored_versions,
    version_state,
)
from embedding.index.release import LivePointer
from embedding.tables.lake import Lake
from tests.encoder.test_config import write
from tests.small_release import point_at


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "a lake"))


def other(folder: Path, text_weight: float) -> Path:
    return write(folder, lambda raw: raw["fusion"].update(text_weight=text_weight))


def test_a_copy_makes_the_same_vectors_and_outlives_the_original(lake: Lake, tmp_path: Path) -> None:
    path = write(tmp_path / "made here")
    version = str(add_encoder(lake, path))
    assert version == str(embedding_version(load_config(path)))
    for file in path.parent.rglob("*"):
        if file.is_file():
            file.unlink()
    opened = open_encoder(lake, version)
    assert opened.version == version == str(embedding_version(opened.config))
    assert all(weights.file.is_relative_to(lake.encoders_uri) for weights in opened.config.weights)
    assert resolve_encoder(lake, version) == opened


def test_adding_again_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    version = str(add_encoder(lake, path))
    before = {file: file.stat().st_mtime_ns for file in Path(lake.encoders_uri).rglob("*")}
    assert resolve_encoder(lake, str(path)).version == version == str(add_encoder(lake, path))
    assert {file: file.stat().st_mtime_ns for file in Path(lake.encoders_uri).rglob("*")} == before
    assert stored_versions(lake) == [version]


def test_a_packaged_encoder_keeps_what_other_packages_hold_where_it_is(lake: Lake) -> None:
    version = str(add_encoder(lake, "pinclip-base"))
    raw = json.loads((Path(lake.encoders_uri) / version / "config.json").read_text())
    files = [entry["file"] for entry in raw["weights"]]
    assert [name.startswith("package:") for name in files] == [True, True, False]
    assert (Path(lake.encoders_uri) / version / files[2]).stat().st_size > 1_000_000


@pytest.mark.parametrize("file", ["weights-0-a.safetensors", "hf_tokenizer_name/vocab.txt", "config.json"])
def test_a_changed_byte_is_refused(lake: Lake, tmp_path: Path, file: str) -> None:
    version = str(add_encoder(lake, write(tmp_path / "x")))
    path = Path(lake.encoders_uri) / version / file
    path.write_bytes(path.read_bytes().replace(b'"text_weight": 0.5', b'"text_weight": 0.4') + b"\n" * (file != "config.json"))
    with pytest.raises(EncoderStoreError, match=f"encoder {version} is damaged: .*Put back the files"):
        open_encoder(lake, version)


def test_a_half_written_folder_is_no_encoder_and_is_completed(lake: Lake, tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    version = str(embedding_version(load_config(path)))
    half = Path(lake.encoders_uri) / version
    half.mkdir(parents=True)
    (half / "weights-0-a.safetensors").write_bytes(b"wei")
    assert stored_versions(lake) == []
    with pytest.raises(EncoderStoreError, match=f"no encoder {version} in .*; there: none"):
        resolve_encoder(lake, version)
    add_encoder(lake, path)
    assert open_encoder(lake, version).version == version
    assert [file.name for file in Path(lake.encoders_uri).iterdir()] == [version], "nothing unfinished is left"


def test_a_copy_that_would_make_other_vectors_is_not_added(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x")
    copy = shutil.copyfile

    def truncated(source: Path, target: Path) -> None:
        copy(source, target)
        target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(shutil, "copyfile", truncated)
    with pytest.raises(EncoderStoreError, match="a copy of this encoder makes"):
        add_encoder(lake, path)
    assert stored_versions(lake) == []
    assert not list(Path(lake.encoders_uri).iterdir())


def test_live_means_the_default_before_the_first_release_and_the_pointers_version_after(lake: Lake, tmp_path: Path) -> None:
    first, second = (str(other(tmp_path / str(weight), weight)) for weight in (0.5, 0.25))
    assert resolve_encoder(lake, "live", first).version == str(embedding_version(load_config(first)))
    version = str(add_encoder(lake, second))
    point_at(lake, LivePointer("r1", embedding_version=version))
    folder = Path(lake.releases_uri) / "r1"
    folder.mkdir()
    names = dict.fromkeys(("ds", "encoder", "factory", "built_by", "built_at"), "")
    numbers = dict.fromkeys(("rows", "dim", "nprobe", "recall_at_10", "pins_version", "pin_embeddings_version"), 0)
    manifest = {**names, **numbers, "release_id": "r1", "embedding_version": version, "days": [], "files": {}, "sweep": []}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    assert resolve_encoder(lake, "live", first).version == version
    assert version_state(lake, version)[0] == "live"


def test_an_encoder_that_is_not_there_is_named(lake: Lake) -> None:
    with pytest.raises(ConfigError, match="no encoder is called 'nobody': take one of"):
        resolve_encoder(lake, "nobody")
    with pytest.raises(EncoderStoreError, match="no encoder tiny-0123456789ab in"):
        resolve_encoder(lake, "tiny-0123456789ab")
    with pytest.raises(EncoderStoreError, match="no migration is under way"):
        resolve_encoder(lake, "candidate")
    with pytest.raises(EncoderStoreError, match="not an embedding version"):
        open_encoder(lake, "../releases")


def test_who_is_kept_fresh_and_who_is_gone(lake: Lake, tmp_path: Path) -> None:
    a, b, c = (str(add_encoder(lake, other(tmp_path / str(weight), weight))) for weight in (0.5, 0.4, 0.3))
    assert newest_idle_version(lake) == c
    mark_fresh(lake, b, Role.CANDIDATE, "run")
    mark_fresh(lake, c, Role.PREVIOUS, "run")
    assert candidate_version(lake) == b == resolve_encoder(lake, "candidate").version
    assert {version: fresh.role for version, fresh in fresh_versions(lake).items()} == {b: "candidate", c: "previous"}
    mark_retired(lake, c, "run")
    assert set(fresh_versions(lake)) == {b}
    assert [version_state(lake, version)[0] for version in (a, b, c)] == ["idle", "candidate", "retired"]
    with pytest.raises(EncoderStoreError, match=f"encoder {c} is retired"):
        resolve_encoder(lake, c)
    mark_abandoned(lake, b, "run")
    assert (candidate_version(lake), version_state(lake, b)[0]) == (None, "abandoned")
    assert newest_idle_version(lake) == a, "one that was given up is not taken up again by itself"
