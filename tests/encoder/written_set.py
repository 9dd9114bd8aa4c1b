"""What the tests' small training sets share: a manifest, and how rows become a set's files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from embedding.encoder.training_set import BAGS_SCHEMA, PINS_SCHEMA, Manifest, SetFile, set_uri, write_manifest, write_shards
from embedding.tables.lake import Lake

MANIFEST = Manifest(
    set_id="2026-11-20-0123456789ab",
    ds="2026-11-20",
    days=["2026-11-20"],
    table_versions={"pins": 1},
    parameters={},
    recipe_version=1,
    counts={},
    dropped={},
    unusable_pictures={},
    uncompared=0,
    files=[],
    built_by="test",
    built_at="2026-11-20T00:00:00+00:00",
    seconds=1.0,
)
SET_ID = MANIFEST.set_id


def write_set(lake: Lake, pins: list[dict[str, Any]], bags: list[dict[str, Any]], **values: Any) -> Manifest:
    """Writes pins and bags, each with its `shard`, as the set SET_ID; `values` change its manifest from MANIFEST."""
    files: list[SetFile] = []
    for kind, schema, rows in (("pins", PINS_SCHEMA, pins), ("train", BAGS_SCHEMA, bags)):
        with_shard = schema.append(pa.field("shard", pa.int64()))
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: int(row["shard"])), schema=with_shard)
        for written in write_shards(table.to_batches(), set_uri(lake, SET_ID), kind, schema):
            files += [SetFile(**row) for row in written.to_pylist()]
    manifest = replace(MANIFEST, files=files, **values)
    write_manifest(lake, manifest)
    return manifest
