"""What a driver hands on to its executors, so that they reach the store that it reaches, and what Spark must not show of it.

A driver has its keys from its environment (Airflow puts a connection's there: dags/connections.py). Executors on other machines
inherit nothing of that, so Spark sends it along, encrypted where `spark.network.crypto.enabled` is set. On a cluster whose
machines have an identity of their own there is no key in the environment, and nothing is handed on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

STORE_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ALLOW_HTTP",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
)
AUTHENTICATION_SECRET = "_SPARK_AUTH_SECRET"  # noqa: S105 - the variable's name, which is Spark's own
REDACTED = "(?i)secret|password|passwd|token|access[._]?key|credential"
"""Names of properties whose values Spark hides in its pages, logs and events; the default knows no `ACCESS_KEY`."""


def credentials_conf(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Spark properties that hand this process's keys on; they go to Spark itself and not through a command line.

    Spark's workers take their shared secret from the environment, a driver of a standalone cluster from a property alone
    (`SecurityManager.initializeAuth` of Spark 4.3).
    """
    environ = os.environ if environ is None else environ
    conf = {f"spark.executorEnv.{name}": environ[name] for name in STORE_VARIABLES if environ.get(name)}
    if secret := environ.get(AUTHENTICATION_SECRET):
        conf |= {"spark.authenticate": "true", "spark.authenticate.secret": secret}
    return {**conf, "spark.redaction.regex": REDACTED}
