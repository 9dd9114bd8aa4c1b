"""The record of encoder trainings, for people: each training a run in MLflow, each encoder a version of one registered model.

    <home>/training/encoders/<run>/   what a training leaves: config.json, weights.safetensors, training.json, progress.jsonl,
                                      and its judgement beside the live encoder, judgement.json
    <home>/mlflow.db                  MLflow's tables, where $PINLAKE_MLFLOW_URI names no other place
    <home>/mlartifacts/               copies of the small files above; the weights are named, not copied

The alias `candidate` is the encoder that was judged better last; `live` mirrors the release pointer. Nothing that serves
reads either of them (docs/decisions/0006-mlflow-records-the-pointer-decides.md).

One MLflow store a lake: a registered model has one `live`. Models are registered by their folder, without a flavour: nothing
is pickled, and MLflow cannot load them. Sends nothing to MLflow's makers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from embedding.contracts import EmbeddingVersion
from embedding.encoder.store import encoder_uri
from embedding.index.release import live_version
from embedding.tables import storage
from embedding.tables.lake import Lake, run_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "pinclip"
"""The registered model: all encoders of a lake are its versions, whatever their architecture."""

CANDIDATE, LIVE = "candidate", "live"
"""Its aliases."""

CONFIG, WEIGHTS, TRAINING, PROGRESS, JUDGEMENT = (
    "config.json",
    "weights.safetensors",
    "training.json",
    "progress.jsonl",
    "judgement.json",
)
TABLE = "judged.csv"
_TABLE_COLUMNS = ("encoder", "metric", "value", "low", "high")

MOST_POINTS = 1_000
"""Of a longer training every n-th line of progress.jsonl becomes a point of a curve; the file itself is kept whole."""

_METRICS_A_CALL, _PARAMS_A_CALL = 1_000, 100
"""MLflow's own limits."""

_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_DEFAULTS = {
    # Whatever goes wrong is raised to us, and said once, without secrets.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    # A server that is away is found to be so in about a minute, not in a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class TrackingError(Exception):
    """A training that cannot be recorded, or an MLflow that cannot be reached. The message says what to do."""


class Verdict(StrEnum):
    """How a training was judged beside the live encoder."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNJUDGED = "unjudged"


# -- what a training leaves -------------------------------------------------------------------------------------------------


def training_uri(lake: Lake, run_id: str) -> str:
    """The folder of the training of run `run_id`."""
    return f"{lake.home}/training/encoders/{run_folder(run_id)}"


@dataclass(frozen=True)
class Training:
    """A finished training: its files, but for the weights.

    facts: training.json. judgement: judgement.json, None before it was judged.
    """

    uri: str
    files: dict[str, bytes]
    facts: dict[str, Any]
    judgement: dict[str, Any] | None

    @property
    def version(self) -> str:
        return str(self.facts["embedding_version"])

    @property
    def verdict(self) -> Verdict:
        if self.judgement is None:
            return Verdict.UNJUDGED
        return Verdict.ACCEPTED if self.judgement["better"] is True else Verdict.REJECTED

    @property
    def key(self) -> str:
        """Names the training, not its folder: a run that was cleared and trained anew is another one."""
        return f"{self.uri.rpartition('/')[2]}/{hashlib.sha256(self.files[TRAINING]).hexdigest()[:12]}"

    @property
    def recipe(self) -> str:
        """The recipe in a word if it has a name, else as JSON."""
        recipe = self.facts["recipe"]
        return str(recipe.get("name") or json.dumps(recipe, sort_keys=True))

    @cached_property
    def progress(self) -> list[dict[str, Any]]:
        """The lines of progress.jsonl. One that a killed training left unfinished is passed over."""
        lines = []
        for line in self.files.get(PROGRESS, b"").splitlines():
            with suppress(TrackingError):
                lines.append(_json(line, PROGRESS))
        return lines


def read_training(lake: Lake, run_id: str) -> Training:
    """The training of a run. Raises TrackingError where the run has trained nothing, or a file is damaged."""
    uri = training_uri(lake, run_id)
    names = (CONFIG, TRAINING, PROGRESS, JUDGEMENT)
    files = {name: storage.read_bytes(f"{uri}/{name}") for name in names if storage.exists(f"{uri}/{name}")}
    if missing := {CONFIG, TRAINING} - files.keys():
        raise TrackingError(
            f"run {run_id} has left no finished training: {uri} lacks {', '.join(sorted(missing))}. "
            "Run train_encoder.py with the same --run-id first"
        )
    facts = _json(files[TRAINING], f"{uri}/{TRAINING}", {"embedding_version": str, "recipe": dict})
    _require_version(str(facts["embedding_version"]))
    judgement = None
    if JUDGEMENT in files:
        where = f"{uri}/{JUDGEMENT}"
        judgement = _json(files[JUDGEMENT], where, {"better": bool, "sentences": list, "rows": list})
        if judgement.get("embedding_version", facts["embedding_version"]) != facts["embedding_version"]:
            # Of an earlier training of the run, which was cleared since: this one is yet to be judged.
            judgement = None
            del files[JUDGEMENT]
    return Training(uri, files, facts, judgement)


def _json(data: bytes, where: str, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except ValueError as error:
        raise TrackingError(f"{where}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise TrackingError(f"{where}: a JSON object is needed")
    for name, kind in (needed or {}).items():
        if not isinstance(values.get(name), kind):
            raise TrackingError(f"{where}: {name!r} is missing, or no {kind.__name__}")
    return values


# -- where the record is ----------------------------------------------------------------------------------------------------


def tracking_uri(lake: Lake) -> str:
    """Address of MLflow's store: $PINLAKE_MLFLOW_URI, else a SQLite file in the lake's home.

    Raises TrackingError where the setting is no address, or where there is none and the home is an object store, which holds
    no database.
    """
    advice = "set PINLAKE_MLFLOW_URI to a database or a server, for example postgresql://host/mlflow or https://host"
    if uri := os.environ.get("PINLAKE_MLFLOW_URI"):
        if "://" not in uri:  # which MLflow would take for a folder
            raise TrackingError(f"PINLAKE_MLFLOW_URI is no address: {advice}")
        return uri
    if not storage.is_local(lake.home):
        raise TrackingError(f"MLflow's database cannot lie in {lake.home}: {advice}")
    if set(lake.home) & set("%?"):
        raise TrackingError(f"MLflow takes no database path with % or ? in it, as {lake.home} has: {advice}")
    return f"sqlite:///{lake.home}/mlflow.db"


@contextmanager
def _mlflow(lake: Lake) -> Iterator[MlflowClient]:
    """A client of the lake's MLflow; what it raises becomes a TrackingError without passwords.

    The cause is left out on purpose: its text and its frames may hold the address with the password.
    """
    uri = tracking_uri(lake)
    os.environ.update(_ENVIRONMENT)  # read once, when mlflow is imported
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # here: the import takes seconds
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise TrackingError(f"MLflow at {_shown(uri)}: {_without_secrets(str(error), uri)}") from None


def _shown(uri: str) -> str:
    """The address without user, password and options."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _without_secrets(text: str, uri: str) -> str:
    parts = urlsplit(uri)
    user_info = parts.netloc.rpartition("@")[0]
    password = user_info.partition(":")[2]
    # The longest first: the address contains the others.
    for secret in (uri, user_info, parts.query, password, unquote(password)):
        text = text.replace(secret, _shown(uri) if secret == uri else "***") if secret else text
    return text


# -- runs -------------------------------------------------------------------------------------------------------------------


def record_training(lake: Lake, training: Training, run_name: str) -> str:
    """Makes the training a run of MLflow, or completes the one that it has. Returns MLflow's id of it.

    Recorded again, it gets the files and figures of a later judgement; curves and parameters stay as they are.
    """
    with _mlflow(lake) as client:
        run = _find_run(client, lake, training) or _create_run(client, lake, training, run_name)
        run_id = str(run.info.run_id)
        if run.info.status != "FINISHED":
            _log_params(client, run_id, training)
            _log_metrics(client, run_id, _curves(training, int(run.info.start_time)))
        known, now_ms, step = run.data.metrics, _now_ms(), int(training.facts.get("steps") or 0)
        changed = {name: value for name, value in figures(training).items() if known.get(name) != value}
        _log_metrics(client, run_id, [(name, value, now_ms, step) for name, value in changed.items()])
        for name, value in _tags(training).items():
            client.set_tag(run_id, name, value)
        for name, data in _artifacts(training).items():
            # Not through MLflow: it would want a client of its own for each object store.
            storage.write_atomic(f"{run.info.artifact_uri}/{name}", data)
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED", int(run.info.start_time) + _duration_ms(training))
        return run_id


Metric = tuple[str, float, int, int]
"""Name, value, time in milliseconds since 1970, step."""


def figures(training: Training) -> dict[str, float]:
    """The final figures: `training/<name>`, and from the judgement `<encoder>/<metric>` and `difference/<metric>`."""
    facts = training.facts
    found = {f"training/{name}": value for name, value in _flat(facts.get("figures") or {}).items()}
    found |= {f"training/{name}": facts[name] for name in ("seconds", "steps", "final_loss") if name in facts}
    for row in (training.judgement or {}).get("rows", []):
        found[f"{row.get('encoder')}/{row.get('metric')}"] = row.get("value")
    if difference := (training.judgement or {}).get("difference"):
        name = f"difference/{difference.get('metric')}"
        found |= {f"{name}/{part}": difference.get(part) for part in ("relative", "low", "high")}
    # An infinite or undefined figure (a difference relative to nothing) has no place in a chart; the table has it.
    return {_name(name): float(value) for name, value in found.items() if _is_number(value) and math.isfinite(value)}


def _find_run(client: MlflowClient, lake: Lake, training: Training) -> Run | None:
    experiment = client.get_experiment_by_name(_experiment(lake))
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.training = '{training.key}'", max_results=1)
    return found[0] if found else None


def _create_run(client: MlflowClient, lake: Lake, training: Training, run_name: str) -> Run:
    experiment = client.get_experiment_by_name(_experiment(lake))
    folder = f"{lake.home}/mlartifacts"
    number = experiment.experiment_id if experiment else client.create_experiment(_experiment(lake), artifact_location=folder)
    started_ms = _now_ms() - _duration_ms(training)
    return client.create_run(number, start_time=started_ms, tags={"training": training.key}, run_name=run_name)


def _experiment(lake: Lake) -> str:
    """Named by the home, because an experiment's artifacts lie where it was made."""
    return f"encoders of {lake.home}"


def _log_params(client: MlflowClient, run_id: str, training: Training) -> None:
    from mlflow.entities import Param

    facts = training.facts
    values: dict[str, Any] = {
        name: facts[name] for name in ("encoder", "embedding_version", "training_set", "seed") if name in facts
    }
    values |= {f"recipe.{name}": value for name, value in _flat(facts["recipe"]).items()}
    params = [Param(_name(name), str(value)) for name, value in values.items()]
    for start in range(0, len(params), _PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])


def _log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    from mlflow.entities import Metric as MlflowMetric

    entities = [MlflowMetric(*metric) for metric in metrics]
    for start in range(0, len(entities), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=entities[start : start + _METRICS_A_CALL])


def _curves(training: Training, started_ms: int) -> list[Metric]:
    """The points of the curves. Equal each time, so that a repeated attempt adds none."""
    lines = training.progress
    every = max(1, math.ceil(len(lines) / MOST_POINTS))
    points = []
    for number, line in enumerate(lines):
        if number % every == 0 or number == len(lines) - 1:
            step, at_ms = int(line.get("step", number)), started_ms + int(1000 * float(line.get("seconds", 0)))
            values = {name: value for name, value in _flat(line).items() if name not in ("step", "seconds")}
            points += [(_name(name), float(value), at_ms, step) for name, value in values.items() if _is_number(value)]
    return points


def _tags(training: Training) -> dict[str, str]:
    # The last one is what MLflow's page shows as the run's description.
    return {
        "verdict": training.verdict.value,
        "embedding_version": training.version,
        "training_set": str(training.facts.get("training_set", "")),
        "against": str((training.judgement or {}).get("against", "")),
        "weights": f"{training.uri}/{WEIGHTS}",
        "mlflow.note.content": describe(training),
    }


def _artifacts(training: Training) -> dict[str, bytes]:
    return training.files | ({TABLE: _table(training.judgement["rows"])} if training.judgement else {})


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, _TABLE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def describe(training: Training) -> str:
    """The verdict, its sentences and its table, in Markdown."""
    parts = [f"**{training.verdict.value}**: {training.version}"]
    if training.judgement:
        parts += [str(sentence) for sentence in training.judgement["sentences"]]
        head = [" | ".join(_TABLE_COLUMNS), " | ".join("---" for _ in _TABLE_COLUMNS)]
        rows = [
            " | ".join("" if row.get(name) is None else str(row[name]) for name in _TABLE_COLUMNS)
            for row in training.judgement["rows"]
        ]
        parts.append("\n".join(f"| {line} |" for line in [*head, *rows]))
    return "\n\n".join(parts)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _name(text: str) -> str:
    """Without the characters that MLflow refuses in a name, such as the @ of recall@10."""
    return re.sub(r"[^\w\-. /]", "_", text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _duration_ms(training: Training) -> int:
    return int(1000 * float(training.facts.get("seconds") or 0))


def _now_ms() -> int:
    return int(time.time() * 1000)


# -- the registry -----------------------------------------------------------------------------------------------------------


def register(lake: Lake, embedding_version: str, tags: Mapping[str, str] | None = None, run_id: str | None = None) -> int:
    """Makes an encoder a version of the registered model; one that is there gets the tags. Returns its number.

    Its source is the encoder's folder in the lake's store (`embedding.encoder.store`).

    Args:
        tags: Besides `embedding_version`: the training set and the recipe, say.
        run_id: MLflow's id of the run that recorded the training; None for an encoder that was not trained here.
    """
    _require_version(embedding_version)
    with _mlflow(lake) as client:
        found = _find_version(client, embedding_version)
        if found is None:
            _create_model(client)
            found = client.create_model_version(
                MODEL, encoder_uri(lake, embedding_version), run_id, tags={"embedding_version": embedding_version}
            )
        for name, value in (tags or {}).items():
            client.set_model_version_tag(MODEL, str(found.version), name, value)
        return int(found.version)


def set_alias(lake: Lake, alias: str, embedding_version: str) -> None:
    """Points an alias at a registered encoder. Raises TrackingError if it is not registered."""
    _require_version(embedding_version)
    with _mlflow(lake) as client:
        found = _find_version(client, embedding_version)
        if found is None:
            raise TrackingError(f"{embedding_version} is not registered as a version of {MODEL!r}: register it first")
        client.set_registered_model_alias(MODEL, alias, str(found.version))


def aliases(lake: Lake) -> dict[str, str]:
    """The embedding version of each alias; empty before the first registration."""
    with _mlflow(lake) as client:
        models = client.search_registered_models(f"name = '{MODEL}'")
        numbers = models[0].aliases if models else {}
        return {
            alias: str(client.get_model_version(MODEL, str(number)).tags.get("embedding_version", ""))
            for alias, number in numbers.items()
        }


def mirror_live(lake: Lake) -> str:
    """Sets the alias `live` to the version that the release pointer names. Returns what it did, for the log.

    A version that MLflow does not know, such as the encoder that came with pinlake, is registered; a `candidate` that now
    serves is one no longer. The pointer is read and never written.

    Raises TrackingError, or ReleaseError where the pointer cannot be read.
    """
    version = live_version(lake)
    if version is None:
        return "no release is live: there is nothing to mirror"
    number = register(lake, version)
    set_alias(lake, LIVE, version)
    if aliases(lake).get(CANDIDATE) == version:
        with _mlflow(lake) as client:
            client.delete_registered_model_alias(MODEL, CANDIDATE)
    return f"MLflow's alias {LIVE!r} is {version} (version {number} of {MODEL!r})"


def _create_model(client: MlflowClient) -> None:
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL, description="Encoders of pins. What serves is said by releases/pins/LIVE.")


def _find_version(client: MlflowClient, embedding_version: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{MODEL}' and tags.embedding_version = '{embedding_version}'")
    # The lowest: of two that were made at the same moment, everybody takes the same one.
    return min(found, key=lambda version: int(version.version), default=None)


def _require_version(embedding_version: str) -> None:
    try:
        EmbeddingVersion.parse(embedding_version)
    except ValueError as error:
        raise TrackingError(str(error)) from None
