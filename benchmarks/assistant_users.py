"""Users of the assistant's service, for locust (benchmarks/assistant_load.py starts it): they search, look, and converse.

Every answer is looked into, not only its status: pins of one release, of which there is at least one, and a turn that ends
with `done` and names nothing that it was not told of. What else comes is an error.
"""

from __future__ import annotations

import json
import os
import time
from random import Random
from typing import Any

from locust import HttpUser, between, task

SUBJECTS = (
    "a red bicycle, birds on a branch, a birthday cake, an old map, the flag of an island, a cat asleep, a mountain in snow, "
    "fresh fruit in a bowl, a computer on a desk, a sailing boat, a tree in autumn, someone who plays the guitar, a fish, "
    "a button with an arrow, a fire engine, a house with a garden, musical notes, a smiling face, a road sign, a cup of coffee"
)
WORDS = SUBJECTS.split(", ")
CHANCE = Random(1)  # noqa: S311 - what is asked is no secret
USERS = os.environ.get("PINLAKE_LOAD_USERS", "").split()
"""Ids of users who have interests."""
TALKERS = int(os.environ.get("PINLAKE_LOAD_TALKERS", "0"))
"""How many of the clients converse."""


class Person(HttpUser):
    """Searches, looks at pins like one, at pins for them, and at their pictures."""

    wait_time = between(0.0, 0.1)

    def on_start(self) -> None:
        self.pins: list[dict[str, Any]] = []

    def _found(self, path: str, name: str, parameters: dict[str, Any]) -> None:
        with self.client.get(path, params=parameters, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            said = response.json()
            if not said["pins"] or len({pin["pin_id"] for pin in said["pins"]}) != len(said["pins"]):
                response.failure("no pins, or one twice")
                return
            self.pins = said["pins"]

    @task(5)
    def search(self) -> None:
        self._found("/search", "/search", {"text": f"{CHANCE.choice(WORDS)} {CHANCE.choice(WORDS)}", "k": 20})

    @task(3)
    def related(self) -> None:
        if self.pins:
            self._found(f"/pins/{CHANCE.choice(self.pins)['pin_id']}/related", "/pins/ID/related", {"k": 20})

    @task(2)
    def recommended(self) -> None:
        self._found("/recommendations", "/recommendations", {"user_id": CHANCE.choice(USERS), "k": 20})

    @task(2)
    def pictures(self) -> None:
        for pin in CHANCE.sample(self.pins, min(4, len(self.pins))):
            self.client.get(pin["picture"], name="/pins/ID/picture")


class Talker(HttpUser):
    """Converses, a turn after the other."""

    abstract = TALKERS == 0
    fixed_count = TALKERS
    wait_time = between(0.5, 1.5)

    @task
    def turn(self) -> None:
        request = {"messages": [{"role": "user", "text": CHANCE.choice(WORDS)}], "mode": "quick"}
        begun, first_ms, told, ended = time.perf_counter(), None, set[str](), None
        with self.client.post("/chat", json=request, name="/chat", stream=True, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            name = ""
            for line in response.iter_lines(decode_unicode=True):
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if name == "candidates":
                        told = {pin["pin_id"] for pin in data["pins"]}
                    elif name == "answer" and first_ms is None:
                        first_ms = (time.perf_counter() - begun) * 1_000
                    ended = (name, data)
            if ended is None or ended[0] != "done" or not set(ended[1]["cited"]) <= told:
                response.failure(f"ended with {ended}")
                return
            # Beside what locust takes, which ends with the answer's head: to the first words, and to the end.
            response.request_meta["response_time"] = (time.perf_counter() - begun) * 1_000
            response.success()
        fire = self.environment.events.request.fire
        fire(
            request_type="POST",
            name="/chat, first words",
            response_time=first_ms or 0,
            response_length=0,
            exception=None,
            context={},
        )
