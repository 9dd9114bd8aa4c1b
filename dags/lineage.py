"""What each Spark program reads and writes, as Airflow's OpenLineage provider tells it: from an export to the live release.

Told only where the provider has a transport (docs/operations.md); a task neither waits for it long nor fails with it. Datasets
are named by OpenLineage's rules: of a folder namespace `file` and its path, of a bucket `s3://bucket` and the key. A table is
one dataset, whatever days it has; an export is one a day. tests/jobs/test_lineage.py holds the map against what programs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dags.common import exports, home
from dags.said import last_known
from embedding.contracts import ENCODERS_FOLDER, LIVE_POINTER, TABLES, export_day_folder

EXPORT = "export"
RELEASES, GRAPHS, LIVE_GRAPH = "releases/pins", "graphs", "graphs/LIVE"
USER_MODELS, TRAINING_SETS, TRAININGS = "user_models", "training/sets", "training/encoders"


@dataclass(frozen=True)
class Flow:
    """Tables by their names, other files by their folder in the lake. What it only looks up in what it writes is no input."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


_DAY = ("pins", "pin_embeddings", "quarantine")
_CURRENT = ("nights", "pins", "pin_embeddings")
_HISTORIES = (*_CURRENT, "saves", "boards")
_SETTLED = Flow((*_CURRENT, "quarantine", ENCODERS_FOLDER), ("pin_embeddings", "quarantine", "nights"))

PROGRAMS: dict[str, Flow] = {
    "land_exports.py": Flow((EXPORT,), ("pins", "boards", "saves", "users", "quarantine")),
    "embed_pins.py": Flow((*_DAY, ENCODERS_FOLDER), ("pin_embeddings", "quarantine")),
    "check_night.py": Flow(_DAY, ("nights",)),
    "build_index.py": Flow(_CURRENT, (RELEASES,)),
    "check_index.py": Flow((RELEASES, "pins", "pin_embeddings", "quarantine"), (RELEASES, "releases")),
    "publish_index.py": Flow((RELEASES,), (LIVE_POINTER, RELEASES, "releases")),
    "build_graph.py": Flow(("nights", "pins", "boards", "saves", "related_pins"), (GRAPHS,)),
    "relate_pins.py": Flow((GRAPHS,), ("related_pins",)),
    "build_interests.py": Flow(_HISTORIES, ("user_interests",)),
    "embed_boards.py": Flow(_HISTORIES, ("board_embeddings",)),
    "train_users.py": Flow(_HISTORIES, (USER_MODELS,)),
    "embed_users.py": Flow((*_HISTORIES, USER_MODELS), ("user_embeddings",)),
    "check_taste.py": Flow((*_HISTORIES, GRAPHS, "related_pins", "user_interests"), (LIVE_GRAPH,)),
    "begin_migration.py": Flow((), (ENCODERS_FOLDER,)),
    "migrate_pins.py": _SETTLED,
    "requeue_pins.py": _SETTLED,
    "compare_encoders.py": Flow((RELEASES, "pins", "quarantine")),
    "build_training_set.py": Flow(("nights", "pins", "boards", "saves"), (TRAINING_SETS,)),
    "train_encoder.py": Flow((TRAINING_SETS,), (TRAININGS,)),
    "judge_encoder.py": Flow((TRAINING_SETS, TRAININGS, ENCODERS_FOLDER), (TRAININGS,)),
    "register_encoder.py": Flow((TRAININGS,), (ENCODERS_FOLDER,)),
    "retire_encoders.py": Flow((ENCODERS_FOLDER,), (ENCODERS_FOLDER, RELEASES)),
}
"""Of the programs that make something of something. What only keeps house, and rewrites what is there, has no lineage."""


def lineage_of(task: Any, ti: Any = None) -> Any:
    """What OpenLineage is told of a task that runs a Spark program; `ti` is the task instance, where it has ended.

    Day and encoder version are run facets, of the standard kind `tags`; the version as the program's log has it.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.tags_run import TagsRunFacet, TagsRunFacetFields

    program = Path(task.application).name
    flow = PROGRAMS.get(program, Flow())
    lines = getattr(getattr(task, "_hook", None), "_last_submit_log_lines", [])
    ds = _day(task, ti) or last_known("ds", lines)
    tags = {"program": program, "ds": ds, "embedding_version": last_known("embedding_version", lines)}
    told = [TagsRunFacetFields(key, value, "pinlake") for key, value in tags.items() if value]
    return OperatorLineage(
        inputs=[_dataset(name, ds) for name in flow.reads if name != EXPORT or ds],
        outputs=[_dataset(name, ds) for name in flow.writes],
        run_facets={"tags": TagsRunFacet(tags=told)},
    )


def named(uri: str) -> tuple[str, str]:
    """A place's namespace and name by OpenLineage's rules (https://openlineage.io/docs/spec/naming)."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return "file", str(Path(parts.path if parts.scheme else uri).expanduser().absolute())
    return f"{parts.scheme.replace('s3a', 's3')}://{parts.netloc}", parts.path.strip("/")


def uri_of(name: str, ds: str | None) -> str:
    """Where a dataset of `PROGRAMS` lies."""
    if name == EXPORT:
        return export_day_folder(exports(), str(ds))
    return f"{home()}/tables/{name}" if name in TABLES else f"{home()}/{name}"


def _dataset(name: str, ds: str | None) -> Any:
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.generated.datasource_dataset import DatasourceDatasetFacet
    from openlineage.client.generated.schema_dataset import SchemaDatasetFacet, SchemaDatasetFacetFields

    uri = uri_of(name, ds)
    namespace, path = named(uri)
    facets: dict[str, Any] = {"dataSource": DatasourceDatasetFacet(name=namespace, uri=uri)}
    if table := TABLES.get(name):
        columns = [SchemaDatasetFacetFields(field.name, str(field.type), table.meanings[field.name]) for field in table.schema]
        facets["schema"] = SchemaDatasetFacet(fields=columns)
    return Dataset(namespace, path, facets=facets)


def _day(task: Any, ti: Any) -> str | None:
    """The day that the program was given; else that of the run, which is known where the task has ended."""
    args = list(task.application_args or [])
    if "--ds" in args[:-1] and "{{" not in (day := str(args[args.index("--ds") + 1])):
        return day
    return ti.get_template_context()["dag_run"].partition_key if ti is not None else None
