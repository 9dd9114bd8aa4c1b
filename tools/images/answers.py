"""A health check: whether an address answers, and says what is wanted.

    python tools/images/answers.py http://127.0.0.1:8080/api/v2/monitor/health metadatabase.status=healthy

Exit status 0 for an answer of status 2xx that is JSON with each value named. Needs the standard library alone, so that it
costs a container little to ask often.
"""

from __future__ import annotations

import json
import sys
import urllib.request

TIMEOUT_S = 5.0


def fault(url: str, wanted: list[str]) -> str:
    """What is wrong with the answer; empty where nothing is."""
    if not url.startswith(("http://", "https://")):
        return f"{url} is no web address"
    # A container's own address is never asked through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read()
    except (OSError, ValueError) as error:  # urllib's own errors are of these kinds
        return f"{url}: {error}"
    for item in wanted:
        path, _, value = item.partition("=")
        try:
            found = json.loads(body)
            for name in path.split("."):
                found = found[name]
        except (ValueError, KeyError, TypeError):
            return f"{url} says nothing of {path}"
        if str(found) != value:
            return f"{url}: {path} is {found}, not {value}"
    return ""


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: answers.py URL [path=value ...]")
    raise SystemExit(fault(sys.argv[1], sys.argv[2:]) or 0)
