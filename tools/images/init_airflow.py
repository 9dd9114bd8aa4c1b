"""Makes Airflow ready, once, before its services start: the database's schema, the pools, the administrator's password.

    PINLAKE_ADMIN_PASSWORD=... python tools/images/init_airflow.py

May be run again, and is, on each start: the schema goes to this Airflow's version, a pool that is there keeps its slots
(someone may have chosen them), and the password becomes what the environment says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

POOLS = Path(__file__).resolve().parents[2] / "dags" / "pools.json"
USER = "admin"
LEAST_PASSWORD_CHARS = 12


def airflow(*arguments: str) -> str:
    """Runs Airflow's command; what it prints on standard output. Ends the program where it fails."""
    done = subprocess.run(["airflow", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`airflow {' '.join(arguments)}` failed with exit status {done.returncode}; its reason is above")
    return done.stdout


def make_pools(pools: dict[str, object]) -> list[str]:
    """Makes those of the pools that are missing; returns their names."""
    listed = airflow("pools", "list", "--output", "json")
    there = {pool["pool"] for pool in json.loads(listed[listed.index("[") :])}
    missing = {name: pool for name, pool in pools.items() if name not in there}
    if missing:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(missing, file)
            file.flush()
            airflow("pools", "import", file.name)
    return list(missing)


def write_password(path: Path, password: str) -> None:
    """The file that Airflow's simple auth manager reads; nobody but this user may."""
    if len(password) < LEAST_PASSWORD_CHARS:
        raise SystemExit(f"PINLAKE_ADMIN_PASSWORD has less than {LEAST_PASSWORD_CHARS} characters: take a longer one")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({USER: password}, file)
    temporary.replace(path)


def main() -> int:
    """Does all three; returns the exit status."""
    try:
        password = os.environ.pop("PINLAKE_ADMIN_PASSWORD")
        passwords = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    except KeyError as missing:
        print(f"{missing.args[0]} is not set", file=sys.stderr)
        return 2
    write_password(passwords, password)
    airflow("db", "migrate")
    made = make_pools(json.loads(POOLS.read_text()))
    print(f"Airflow is ready; pools made: {', '.join(made) or 'none, they are there'}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
