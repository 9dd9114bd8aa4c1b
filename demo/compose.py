"""docker-compose.yml, read for this machine: what each service would run in its container, by hand and beside the others.

    services = here(read_services(variables, {"store"}), folder, {"spark-worker": 1})

Commands, health checks and environments stay what the file says; only the container's surroundings are put in their places. A
service's name with its port becomes 127.0.0.1 with a free one, a volume a folder, /opt/pinlake this repository. Starts nothing:
demo/services.py does.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
FILE = REPO / "docker-compose.yml"
LOCAL, ANYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104
CODE = "/opt/pinlake"
"""Where the images have the repository (Dockerfile)."""

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<rule>:?[-?])(?P<word>[^}]*))?\})")


class ComposeError(Exception):
    """The file or what it needs is not there; the message says which variable, and what it is."""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Compose's `$$`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?what it is}` and `${NAME?what it is}`."""

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name, rule, word = found["name"], found["rule"] or "", found["word"] or ""
        given = variables.get(name)
        if given is None or (not given and rule.startswith(":")):
            if rule.endswith("?"):
                raise ComposeError(f"{name} is not set: {word}")
            return word
        return given

    return _VARIABLE.sub(value, text)


def _resolved(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return interpolated(node, variables)
    if isinstance(node, list):
        return [_resolved(item, variables) for item in node]
    if isinstance(node, dict):
        return {name: _resolved(item, variables) for name, item in node.items()}
    return node


def read_services(variables: Mapping[str, str], profiles: Collection[str] = (), file: Path = FILE) -> dict[str, dict[str, Any]]:
    """The services of the file, those of other profiles left out, with `variables` put in. Raises ComposeError."""
    services = yaml.safe_load(file.read_text())["services"]
    wanted = {name: one for name, one in services.items() if not one.get("profiles") or set(profiles) & set(one["profiles"])}
    return {name: _resolved(one, variables) for name, one in wanted.items()}


@dataclass(frozen=True)
class Service:
    """
    A service, or one of its replicas, on this machine.

    name: The service's in the file; number: which replica, from 1.
    image, target: The image's name, and the Dockerfile's target that it is built from ("" where it is no image of pinlake's).
    argv, environment, folder: What runs, where. Nothing of this process's own environment is in it.
    check: The health check's command, None for one that runs once and ends.
    ports: Free ports of this machine by those of the container. needs: conditions by the services that have to meet them.
    places: Folders of this machine by those of the container.
    """

    name: str
    number: int
    image: str
    target: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    check: tuple[str, ...] | None
    ports: Mapping[int, int]
    needs: Mapping[str, str]
    places: Mapping[str, Path]

    @property
    def title(self) -> str:
        """Its name among all processes: `spark-worker-2`."""
        return f"{self.name}-{self.number}"


def here(services: Mapping[str, Mapping[str, Any]], folder: Path, replicas: Mapping[str, int] | None = None) -> list[Service]:
    """Each replica of each service, for this machine; all that they write goes below `folder`.

    `replicas` overrides the file's numbers. The first of several replicas is the one that others reach by the service's name.
    """
    counts = {name: (replicas or {}).get(name, _replicas(one)) for name, one in services.items()}
    ports = {
        (name, number): dict(zip(_exposed(services[name]), _free_ports(len(_exposed(services[name]))), strict=True))
        for name, count in counts.items()
        for number in range(1, count + 1)
    }
    reached = {
        f"{name}:{port}": f"{LOCAL}:{free}" for (name, number), by in ports.items() if number == 1 for port, free in by.items()
    }
    return [
        _service(name, number, services[name], folder, own, reached, services.keys()) for (name, number), own in ports.items()
    ]


def _replicas(service: Mapping[str, Any]) -> int:
    return int(service.get("deploy", {}).get("replicas", 1))


def _exposed(service: Mapping[str, Any]) -> list[int]:
    return [int(port) for port in service.get("expose", [])]


def _free_ports(count: int) -> Iterator[int]:
    """That many, which were free a moment ago, each another."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((LOCAL, 0))
        yield int(probe.getsockname()[1])
    for probe in probes:
        probe.close()


def _service(
    name: str,
    number: int,
    service: Mapping[str, Any],
    folder: Path,
    ports: Mapping[int, int],
    reached: Mapping[str, str],
    names: Collection[str],
) -> Service:
    places = _places(f"{name}-{number}", service, folder)
    own = {f"{host}:{port}": f"{LOCAL}:{free}" for port, free in ports.items() for host in (LOCAL, "localhost", ANYWHERE)}
    words = {ANYWHERE: LOCAL, **reached, **own, **{path: str(place) for path, place in places.items()}}
    # A word stands between characters that no name goes on with, and a path begins anew; the longest is tried first.
    longest = sorted(words, key=len, reverse=True)
    hosts, paths = ("|".join(re.escape(word) for word in longest if word.startswith("/") is kind) for kind in (False, True))
    pattern = re.compile(rf"(?:(?<![\w.-])(?:{hosts})|(?<![\w./-])(?:{paths}))(?![\w.-])")

    whole = {str(port): str(free) for port, free in ports.items()}

    def place(text: Any) -> str:
        text = str(text)
        return whole.get(text) or pattern.sub(lambda found: words[found.group()], text)

    command = [place(word) for word in service["command"]]
    environment = {
        variable: LOCAL if value in names else place(value) for variable, value in service.get("environment", {}).items()
    }
    test = service.get("healthcheck", {}).get("test")
    kind, *check = test or ["NONE"]
    if kind == "CMD-SHELL":
        check = ["sh", "-c", *check]
    needs = service.get("depends_on", {})
    return Service(
        name=name,
        number=number,
        image=service["image"],
        target=service.get("build", {}).get("target", ""),
        argv=tuple(command),
        environment={**environment, "HOSTNAME": f"{name}-{number}"},
        folder=Path(place(service.get("working_dir", CODE))),
        check=tuple(place(word) for word in check) if kind != "NONE" else None,
        ports=ports,
        needs={needed: condition["condition"] for needed, condition in needs.items()},
        places=places,
    )


def _places(title: str, service: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """A folder for each that is mounted: a named volume's is shared, any other is the replica's own; makes none."""
    places = {CODE: REPO}
    for mount in [*service.get("volumes", []), *service.get("tmpfs", [])]:
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            places[rest.removesuffix(":ro")] = REPO / source
        elif source.startswith("/"):
            places[source] = folder / title / source.strip("/").replace("/", "-")
        else:
            places[rest] = folder / "volumes" / source
    return places
