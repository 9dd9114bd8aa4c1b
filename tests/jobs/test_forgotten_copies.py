"""What killed builds left goes after days; what others stand on, or what lies beside it, stays. Neither Spark nor tables."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from embedding.tables.lake import Lake
from embedding.taste.graph import GraphManifest
from embedding.taste.store import delete_graphs, graph_uri, publish_graph, write_manifest
from jobs.forgotten_copies import delete_unfinished, find_copies

WHOLE, ON_IT, KILLED = "2026-11-18-00000000000a", "2026-11-19-00000000000b", "2026-11-20-00000000000c"


def file_in(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    (Path(folder) / "pins-00000-ids.npy").write_bytes(b"ids")


def make_old(lake: Lake) -> None:
    """As if nothing below the home had been written for three days."""
    for path in [*Path(lake.home).rglob("*"), Path(lake.home)]:
        os.utime(path, (time.time() - 3 * 86_400,) * 2)


def test_a_base_stays_and_what_a_killed_build_left_goes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    whole = GraphManifest(WHOLE, "attempt", ["2026-11-18"], {"pins": 1}, 10, {}, {}, {}, "run", "2026-11-18T00:00:00+00:00")
    made = [whole, replace(whole, graph_id=ON_IT, base=whole.as_base)]
    for manifest in made:
        file_in(f"{graph_uri(lake, manifest.graph_id)}/attempt")
        write_manifest(lake, manifest)
    publish_graph(lake, ON_IT)
    file_in(f"{graph_uri(lake, KILLED)}/attempt")
    file_in(f"{lake.home}/training/encoders/weekly")
    file_in(f"{lake.home}/training/{KILLED}/pins")
    file_in(f"{lake.home}/training/conversations/{KILLED}")
    models = f"{lake.home}/user_models/tiny-0123456789ab"
    file_in(f"{models}/.staged-killed/histories")
    file_in(f"{models}/users-finished")
    Path(f"{models}/users-finished/manifest.json").write_text("{}")
    assert [(copy.name, copy.live) for copy in find_copies(lake)] == [(f"graph {WHOLE}", False), (f"graph {ON_IT}", True)]
    assert delete_unfinished(lake) == [], "a build may be at work on them"
    delete_graphs(lake, [ON_IT])
    make_old(lake)
    assert delete_unfinished(lake) == [
        f"training/{KILLED}",
        f"training/conversations/{KILLED}",
        f"graphs/{KILLED}",
        "user_models/tiny-0123456789ab/.staged-killed",
    ]
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy")}
    assert left == {f"graphs/{of}/attempt/pins-00000-ids.npy" for of in (WHOLE, ON_IT)} | {
        "training/encoders/weekly/pins-00000-ids.npy",
        "user_models/tiny-0123456789ab/users-finished/pins-00000-ids.npy",
    }
