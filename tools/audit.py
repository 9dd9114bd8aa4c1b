"""Known vulnerabilities of what the locks pin: `make audit`.

    python tools/audit.py                                  # asks OSV, or PyPI where OSV cannot be reached
    python tools/audit.py --advisories all.zip             # OSV's own dump (PyPI/all.zip), for machines without the Internet

Nothing is installed: a lock names each package's version and hashes, and pip-audit asks a service about them. A finding fails,
unless tools/audit_ignore.toml has it, with a reason and a day on which the exception ends.

Exit status: 0 nothing known; 1 a vulnerability, or an exception that has ended; 2 a lock that is not whole; 4 nothing, or not
all, was audited, which the checks take for a warning and nobody for a pass.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REPO = Path(__file__).resolve().parent.parent
IGNORE = REPO / "tools" / "audit_ignore.toml"
OK, VULNERABLE, BAD_LOCK, NOT_AUDITED = 0, 1, 2, 4
SERVICES = ("osv", "pypi")

_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?=\s|\\|$)")


class LockError(ValueError):
    """A lock that is not whole. The message says which line."""


class UnreachableError(Exception):
    """A service of advisories that gave no answer."""


@dataclass(frozen=True)
class Finding:
    """A package that an advisory is about. names: the advisory's id and its others (CVE, GHSA)."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version is known"
        return f"{self.package} {self.version}: {', '.join(self.names)}; {fixed}"


@dataclass(frozen=True)
class Audited:
    """findings: of packages. skipped: packages that the service did not know, so that nothing is known about them."""

    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exempt:
    """An accepted finding: the advisory's id, why it does not matter here, and the day from which it does again."""

    id: str
    reason: str
    expires: date


def locks() -> list[Path]:
    """Every lock of the repository."""
    return [*sorted(REPO.glob("*.lock")), *sorted((REPO / "tools" / "images").glob("*.lock"))]


def read_lock(path: Path) -> dict[tuple[str, str], str]:
    """The pins of a lock, (name, version), each with its line. Raises LockError for anything that is no pin with a hash."""
    pins: dict[tuple[str, str], str] = {}
    for line in re.sub(r"\\\n", " ", path.read_text()).splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        if not (pin := _PIN.match(text)):
            raise LockError(f"{path.name}: not pinned to one version: {text[:80]}")
        if not _HASH.search(text):
            raise LockError(f"{path.name}: {pin[1]} {pin[2]} has no hash")
        pins[canonicalize_name(pin[1]), pin[2]] = text
    if not pins:
        raise LockError(f"{path.name}: pins nothing")
    return pins


def read_exempt(path: Path, today: date) -> tuple[list[Exempt], list[str]]:
    """The exceptions that hold, and sentences about those that have ended or say no reason."""
    entries = tomllib.loads(path.read_text()).get("ignore", []) if path.is_file() else []
    holding, faults = [], []
    for entry in entries:
        missing = [name for name in ("id", "reason", "expires") if not entry.get(name)]
        if missing or not isinstance(entry["expires"], date):
            faults.append(f"{path.name}: {entry} lacks {', '.join(missing) or 'a date as `expires`'}")
        elif entry["expires"] <= today:
            faults.append(f"{path.name}: the exception for {entry['id']} ended on {entry['expires']}: look at it again")
        else:
            holding.append(Exempt(entry["id"], entry["reason"], entry["expires"]))
    return holding, faults


def ask_service(service: str, pins: Mapping[tuple[str, str], str], osv_url: str | None) -> Audited:
    """Asks a service about the pins, by pip-audit, which installs and resolves nothing. Raises UnreachableError."""
    with tempfile.TemporaryDirectory() as folder:
        # Without markers: what is pinned for another machine counts, too.
        lines = [f"{name}=={version} {' '.join(_HASH.findall(line))}" for (name, version), line in pins.items()]
        lists = _without_doubles(lines)
        found = Audited()
        for number, part in enumerate(lists):
            requirements = Path(folder) / f"{number}.txt"
            requirements.write_text("\n".join(part) + "\n")
            words = ["--requirement", str(requirements), "--require-hashes", "--disable-pip", "--format", "json"]
            words += ["--vulnerability-service", service, "--progress-spinner", "off", "--timeout", "20"]
            words += ["--osv-url", osv_url] if osv_url and service == "osv" else []
            done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
            try:
                answer = json.loads(done.stdout)
            except ValueError:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise UnreachableError(f"{service}: {said[:300]}") from None
            for row in answer["dependencies"]:
                if "skip_reason" in row:
                    found.skipped.append(row["name"])
                for advisory in row.get("vulns", ()):
                    names = tuple(dict.fromkeys((advisory["id"], *advisory.get("aliases", ()))))
                    found.findings.append(Finding(row["name"], row["version"], names, tuple(advisory["fix_versions"])))
    return found


def _without_doubles(lines: Iterable[str]) -> list[list[str]]:
    """As few lists as there can be in which no package stands twice: a lock may pin another version for another Python."""
    lists: list[dict[str, str]] = []
    for line in lines:
        name = line.partition("==")[0]
        room = next((part for part in lists if name not in part), None)
        if room is None:
            lists.append(room := {})
        room[name] = line
    return [list(part.values()) for part in lists]


def audit_online(pins: Mapping[tuple[str, str], str], services: Sequence[str], osv_url: str | None) -> Audited:
    """Asks the services in turn. Raises UnreachableError."""
    first = dict([next(iter(pins.items()))])
    told = []
    for service in services:
        try:
            # A mirror of PyPI answers, and knows nothing: it is asked about one package before it is asked about all.
            if service == "pypi" and ask_service(service, first, osv_url).skipped:
                raise UnreachableError(f"{service}: knows no package of that name; a mirror, perhaps")
            return ask_service(service, pins, osv_url)
        except UnreachableError as error:
            told.append(str(error))
    raise UnreachableError("; ".join(told))


def audit_offline(pins: Iterable[tuple[str, str]], dump: Path) -> Audited:
    """Looks the pins up in OSV's dump, a zip file with a JSON file an advisory."""
    wanted: dict[str, list[str]] = {}
    for name, version in pins:
        wanted.setdefault(name, []).append(version)
    found = Audited()
    with zipfile.ZipFile(dump) as archive:
        for member in archive.namelist():
            advisory: dict[str, Any] = json.loads(archive.read(member)) if member.endswith(".json") else {"withdrawn": True}
            if advisory.get("withdrawn"):
                continue
            for affected in advisory.get("affected", ()):
                package = affected.get("package", {})
                name = canonicalize_name(package.get("name", ""))
                for version in wanted.get(name, ()) if package.get("ecosystem") == "PyPI" else ():
                    if version in affected.get("versions", ()) or _in_ranges(version, affected.get("ranges", ())):
                        names = tuple(dict.fromkeys((advisory["id"], *advisory.get("aliases", ()))))
                        found.findings.append(Finding(name, version, names, _fixes(affected)))
    return found


def _in_ranges(text: str, ranges: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a version lies in a range of OSV's schema: between `introduced` and `fixed`, or up to `last_affected`."""
    try:
        version = Version(text)
        for events in (span.get("events", ()) for span in ranges if span.get("type") == "ECOSYSTEM"):
            affected = False
            order = {"introduced": 0, "fixed": 1, "last_affected": 1}
            moments = [
                (Version("0" if at == "0" else at), kind) for event in events for kind, at in event.items() if kind in order
            ]
            for at, kind in sorted(moments, key=lambda moment: (moment[0], order[moment[1]])):
                if kind == "introduced" and version >= at:
                    affected = True
                elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
                    affected = False
            if affected:
                return True
    except InvalidVersion:
        return False
    return False


def _fixes(affected: Mapping[str, Any]) -> tuple[str, ...]:
    events = (event for span in affected.get("ranges", ()) for event in span.get("events", ()))
    return tuple(event["fixed"] for event in events if "fixed" in event)


def report(audited: Audited, exempt: Sequence[Exempt], faults: Sequence[str], count: int) -> int:
    """Prints what was found; returns the exit status."""
    accepted = {entry.id: entry for entry in exempt}
    open_ones, used = [], set()
    for finding in dict.fromkeys(audited.findings):
        if entry := next((accepted[name] for name in finding.names if name in accepted), None):
            used.add(entry.id)
            print(f"accepted until {entry.expires}: {finding} ({entry.reason})")
        else:
            open_ones.append(finding)
    for entry in exempt:
        if entry.id not in used:
            print(f"{IGNORE.name}: nothing is found for {entry.id} any more: take it out")
    for sentence in [*map(str, open_ones), *faults]:
        print(f"FAILED: {sentence}", file=sys.stderr)
    if open_ones or faults:
        return VULNERABLE
    if audited.skipped:
        print(f"NOT AUDITED: {len(audited.skipped)} of {count}: {', '.join(audited.skipped)}", file=sys.stderr)
        return NOT_AUDITED
    print(f"{count} packages audited: no vulnerability is known that is not accepted")
    return OK


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", action="append", type=Path, help="a lock (default: every one of the repository)")
    parser.add_argument("--advisories", type=Path, metavar="ZIP", help="look in this dump of OSV's, ask no service")
    parser.add_argument("--service", action="append", choices=SERVICES, help="ask this one (default: in this order, all)")
    parser.add_argument("--osv-url", help="another server that answers as OSV does")
    parser.add_argument("--ignore", type=Path, default=IGNORE, help="the exceptions (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Audits the locks; returns the exit status."""
    args = parse_args(argv)
    try:
        pins = {pin: line for lock in args.lock or locks() for pin, line in read_lock(lock).items()}
        exempt, faults = read_exempt(args.ignore, datetime.now(UTC).date())
    except (LockError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return BAD_LOCK
    try:
        audited = (
            audit_offline(pins, args.advisories)
            if args.advisories
            else audit_online(pins, args.service or SERVICES, args.osv_url)
        )
    except (UnreachableError, OSError, zipfile.BadZipFile, ValueError) as error:
        for fault in faults:
            print(f"FAILED: {fault}", file=sys.stderr)
        print(f"NOT AUDITED: none of {len(pins)} packages was looked up. {error}", file=sys.stderr)
        return VULNERABLE if faults else NOT_AUDITED
    return report(audited, exempt, faults, len(pins))


if __name__ == "__main__":
    raise SystemExit(main())
