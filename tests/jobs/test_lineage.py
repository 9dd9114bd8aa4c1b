"""The map of what programs read and write (dags/lineage.py), against what they did when they made the tests' lakes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from embedding.contracts import TABLES
from embedding.tables.lake import Lake
from tests.watched import FOLDERS, read_seen

WATCHED = "land_exports embed_pins check_night build_index check_index publish_index build_graph relate_pins build_interests"

NOBODY_LEFT = {"users"}
"""Which tables the days of these lakes may leave as they were: it is deleted users that `users` has."""


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """dags/lineage.py, in an Airflow of the test's own."""
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.setenv("PINLAKE_HOME", "s3a://bucket/lake/")
        patch.delenv("PINLAKE_EXPORTS", raising=False)
        import dags.lineage

        return dags.lineage


def test_the_map_says_what_the_programs_do(lineage: ModuleType, lake_with_interests: Lake, seen_programs: Path) -> None:
    seen = read_seen(seen_programs)
    assert {f"{name}.py" for name in [*WATCHED.split(), "check_taste"]} <= {run.program for run in seen}
    for program in {run.program for run in seen}:
        flow, runs = lineage.PROGRAMS[program], [run for run in seen if run.program == program]
        changed = {name for run in runs for name in run.changed}
        opened = {name for run in runs for name in run.opened}
        written = {name for name in flow.writes if name in TABLES or name in FOLDERS}
        assert changed - NOBODY_LEFT == written - NOBODY_LEFT, program
        assert changed <= written, program
        assert opened - written == {name for name in flow.reads if name in TABLES} - written, program


def test_datasets_are_named_by_openlineages_rules(lineage: ModuleType, tmp_path: Path) -> None:
    assert lineage.named("s3a://bucket/lake/tables/pins") == ("s3://bucket", "lake/tables/pins")
    assert lineage.named("abfss://c@account.dfs.core.windows.net/lake") == ("abfss://c@account.dfs.core.windows.net", "lake")
    assert lineage.named(str(tmp_path)) == lineage.named(f"file://{tmp_path}") == ("file", str(tmp_path))


def test_every_program_of_a_dag_has_lineage_or_only_keeps_house(lineage: ModuleType) -> None:
    programs = {path.name for path in (Path(sys.modules["dags"].__path__[0]).parent / "jobs").glob("*.py")}
    assert set(lineage.PROGRAMS) <= programs
