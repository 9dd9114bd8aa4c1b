"""A night, a release, a backfill and a migration on a cluster of this machine's processes, with kills in the middle.

    make cluster-test        (or: python -m demo.cluster --folder .cluster)

What docker-compose.yml starts in containers is started here by hand: Postgres, Redis, Airflow with Celery, Spark's master and
two workers that declare invented GPUs, and the S3 store. Tables, releases, exports and pictures are on s3://, and the only
place that holds the store's key is the Airflow connection `pinlake_store`.

1. The day's programs run once undisturbed, in one process and another home: what the cluster's rows are measured by.
2. **A night of day 1**. The store is killed while the export lands, a Spark worker with its executors while they encode, and
   the Celery worker that runs the gate, with all that it started. Each comes back, as a restart policy would have it.
3. **A release**, which the night's event starts.
4. **A migration** to another encoder and, before its slices' turn comes, **a backfill of day 2** by Airflow's command, with its
   release. The migration ends in one change of `LIVE`, and a rollback takes it back.
5. Checks, a line each: rows, vectors, counts, commits, conditional puts, and no secret in any log.

The exit status is 0 only if every check held. About a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from demo.airflow import LAPTOP_SPARK_CONF
from demo.airflow_api import DONE_STATES, AirflowError
from demo.another_encoder import another_encoder
from demo.cluster_checks import Finding, check_day, check_release, check_requests, check_secrets, rows
from demo.cluster_processes import AIRFLOW, BUCKET, SPARK, Cluster, ClusterFailedError, program_environment, until
from demo.days import DEMO_DAYS, write_days
from demo.openclipart import ClipartUnavailableError, fetch, read_clipart
from demo.run import Progress
from demo.services import ServicesError
from demo.store_upload import upload_exports
from embedding.cli import format_table
from embedding.contracts import PIN_EMBEDDINGS
from embedding.encoder.config import embedding_version, load_config
from embedding.index.cut_over import roll_back
from embedding.tables.lake import Lake

REPO = Path(__file__).resolve().parent.parent
DAY_1, DAY_2, _ = DEMO_DAYS
PICTURES = 60
LENIENT = {"min_coverage": 0.1}
"""The demo's second day has so many broken pins for its size that the gate would be right to stop it."""

UNDISTURBED = """
import sys
from jobs import check_night, embed_pins, land_exports
exports, *common = sys.argv[1:]
land_exports.main([*common, "--exports", exports])
embed_pins.main(common)
sys.exit(check_night.main([*common, "--min-coverage", "0.1"]))
"""


class ClusterTest:
    """The run: what it has started, and what it has found."""

    def __init__(self, folder: Path, cache: Path, progress: Progress) -> None:
        self._folder, self._cache, self._progress = folder, cache, progress
        self._cluster = Cluster(folder, progress.say)
        self._lake = Lake(self._cluster.home)
        self._live = str(embedding_version(load_config("pinclip-base")))
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Everything in order; raises where something did not even end."""
        with self._cluster.services as services:
            services.up("store")
            os.environ.update(self._cluster.store_environment())
            self._upload()
            undisturbed = self._undisturbed()
            services.up(*AIRFLOW, *SPARK, timeout_s=900)
            self._progress.say(f"the cluster is up: {', '.join(sorted(services.running()))}")
            self._api = self._cluster.api
            self._night()
            new = self._backfill_in_a_migration()
            self._progress.say("checks")
            for ds in (DAY_1, DAY_2):
                self.findings += check_day(self._lake, undisturbed, ds, self._live)
            self.findings += check_release(self._lake, new, [DAY_1, DAY_2])
            self._progress.say(roll_back(self._lake, None, "by-hand"))
            self.findings += check_release(self._lake, self._live, [DAY_1, DAY_2])
            self.findings += check_requests(self._cluster.store_writes)
        # Once all has ended, and has written its last line.
        self.findings += check_secrets(self._cluster.logs, self._cluster.secrets)

    def _upload(self) -> None:
        exports = self._folder / "exports"
        write_days(read_clipart(fetch(self._cache)), exports, self._folder / "images", limit=PICTURES)
        count = upload_exports(exports, self._cluster.exports, f"{BUCKET}/pictures")
        self._progress.say(f"three days of exports and {count} pictures are in the store")

    def _undisturbed(self) -> Lake:
        lake = Lake(f"{BUCKET}/undisturbed")
        submit = " ".join(f"--conf '{name}={value}'" for name, value in LAPTOP_SPARK_CONF.items())
        environment = program_environment({**os.environ, "PYSPARK_SUBMIT_ARGS": f"{submit} pyspark-shell"})
        for ds in (DAY_1, DAY_2):
            command = [sys.executable, "-c", UNDISTURBED, self._cluster.exports]
            command += ["--home", lake.home, "--ds", ds, "--run-id", "undisturbed"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=REPO)
            if done.returncode:
                raise ClusterFailedError(f"the undisturbed night of {ds} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
            self._progress.say(f"the undisturbed night of {ds} is done")
        return lake

    def _night(self) -> None:
        asked_at = datetime.now(UTC)
        self._progress.say(f"a night of {DAY_1}, with three kills")
        for dag_id in ("nightly_pins", "index_release"):
            self._api.unpause(dag_id)
        run_id = self._api.trigger_day("nightly_pins", DAY_1, LENIENT)
        kills: dict[str, Callable[[], bool]] = {
            "land": self._cluster.kill_store,
            "embed": self._cluster.kill_spark_worker,
            "check": partial(self._cluster.kill_celery_worker, "check_night.py"),
        }
        tell = self._progress.tasks("nightly_pins")
        for _ in until(1_800):
            state, states = self._api.run_state("nightly_pins", run_id), self._api.task_states("nightly_pins", run_id)
            tell(states)
            for task in [task for task in kills if states.get(task) == "running" and kills[task]()]:
                del kills[task]
            if state in DONE_STATES:
                break
        if state != "success":
            raise ClusterFailedError(self._api.failure_report("nightly_pins", run_id))
        claim = "store, Spark worker and Celery worker were killed while the night used them"
        self.findings.append(Finding(claim, not kills, ", ".join(self._cluster.killed)))
        tries = self._api.tries("nightly_pins", run_id)
        self.findings.append(Finding("embed outlived its executor without a second try", tries["embed"] == 1, str(tries)))
        self._wait_release(DAY_1, [DAY_1], asked_at)

    def _backfill_in_a_migration(self) -> str:
        """A day that is backfilled before the candidate's turn comes is embedded under both encoders, and released."""
        config = another_encoder(self._folder / "pinclip-words")
        new = str(embedding_version(load_config(config)))
        self._progress.say("a migration of all pins to another encoder, whose slices wait for their pool")
        self._cluster.airflow("pools", "set", "migration", "0", "set by hand")
        self._api.unpause("encoder_migration")
        migration = self._api.trigger("encoder_migration", {"to": str(config), "allow_worse": True, **LENIENT})
        for _ in until(300):
            if self._api.task_states("encoder_migration", migration).get("choose_encoders") == "success":
                break
        asked_at = datetime.now(UTC)
        self._progress.say(f"meanwhile a backfill of {DAY_2}")
        span = ["--from-date", DAY_2, "--to-date", f"{DAY_2}T23:59", "--dag-run-conf", json.dumps(LENIENT)]
        self._cluster.airflow("backfill", "create", "--dag-id", "nightly_pins", *span)
        self._wait("nightly_pins", self._api.find_run("nightly_pins", DAY_2, after=asked_at))
        self._wait_release(DAY_2, [DAY_1, DAY_2], asked_at)
        under = [_pins(self._lake, DAY_2, version) for version in (self._live, new)]
        claim = f"{DAY_2} was embedded under both encoders before the candidate's turn came"
        self.findings.append(Finding(claim, under[0] == under[1] != [], f"{len(under[0])} and {len(under[1])} pins"))
        self._progress.say("the migration goes on")
        self._cluster.airflow("pools", "set", "migration", "2", "set by hand")
        self._wait("encoder_migration", migration)
        return new

    def _wait_release(self, ds: str, days: list[str], asked_at: datetime) -> None:
        self._wait("index_release", self._api.find_run("index_release", ds, after=asked_at, timeout_s=180))
        self.findings += check_release(self._lake, self._live, days)

    def _wait(self, dag_id: str, run_id: str) -> None:
        if self._api.wait_run(dag_id, run_id, self._progress.tasks(dag_id), timeout_s=1_800) != "success":
            raise ClusterFailedError(self._api.failure_report(dag_id, run_id))


def _pins(lake: Lake, ds: str, version: str) -> list[int]:
    return sorted(row["pin_id"] for row in rows(lake, PIN_EMBEDDINGS, ds=ds, embedding_version=version))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".cluster"), help="where everything is written; emptied first")
    parser.add_argument("--cache", type=Path, default=Path(".cache/openclipart"), help="where the pictures are fetched to")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs it all; returns the exit status."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end by request ends what was started, too
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    test = ClusterTest(folder, args.cache, Progress())
    try:
        test.run()
    except (ClusterFailedError, ServicesError, AirflowError, ClipartUnavailableError) as error:
        print(f"{error}\nlogs: {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(format_table([("yes" if f.held else "NO", f.claim, f.seen) for f in test.findings], ("held", "claim", "seen")))
    return 0 if all(finding.held for finding in test.findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
